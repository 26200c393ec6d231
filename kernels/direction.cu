// Random directions, drawn where they are used, and what moves parameters along them.
//
// Floor: parameters and states read and written once, at the bandwidth of memory; some 40 operations a normal number, so that 16-bit
// parameters are bound by arithmetic. A thread draws two numbers at once, the cosine and the sine of one angle.
//
// Compiled for: T, RULE (what becomes of a gradient), GIVEN (whether it is given).

#define SGD 0
#define SIGN 1
#define CONSERVATIVE 2
#define MOMENTUM 3
#define ADAM 4

// Slopes of up to 16 draws; null behind the last.
#define SLOPES                                                                                                         \
    const f32 *s0, const f32 *s1, const f32 *s2, const f32 *s3, const f32 *s4, const f32 *s5, const f32 *s6,           \
        const f32 *s7, const f32 *s8, const f32 *s9, const f32 *s10, const f32 *s11, const f32 *s12, const f32 *s13,   \
        const f32 *s14, const f32 *s15
#define ALL_SLOPES {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15}

// The natural logarithm of a number in (0, 1], the cosine and the sine of whole turns: as in `src/graph/op/direction/normal.rs`.
DEVICE f32 ln(f32 x) {
    int bits = int(__float_as_uint(x)), shifted = bits - 0x3f3504f3;
    f32 exponent = f32(shifted >> 23), m = __uint_as_float(u32(bits - (shifted & ~0x007fffff))) - 1.0f;
    f32 square = m * m, p = 7.0376836e-2f;
    p = p * m + -1.151461e-1f;
    p = p * m + 1.1676999e-1f;
    p = p * m + -1.2420141e-1f;
    p = p * m + 1.4249323e-1f;
    p = p * m + -1.6668057e-1f;
    p = p * m + 2.0000715e-1f;
    p = p * m + -2.4999994e-1f;
    p = p * m + 3.333333e-1f;
    f32 low = p * m * square - 2.1219444e-4f * exponent - 0.5f * square;
    return m + low + 0.6933594f * exponent;
}
DEVICE void turn(f32 turns, f32 &cosine, f32 &sine) {
    int quarter = int(4.0f * turns + 0.5f);
    f32 angle = (turns - 0.25f * f32(quarter)) * 6.2831855f, z = angle * angle;
    f32 s = angle + angle * z * (-1.6666655e-1f + z * (8.332161e-3f - 1.9515296e-4f * z));
    f32 tail = z * z * (4.1666646e-2f + z * (-1.3887316e-3f + 2.4433157e-5f * z));
    f32 c = 1.0f - 0.5f * z + tail;
    bool odd = quarter & 1;
    f32 a = odd ? s : c, b = odd ? c : s;
    cosine = (quarter + 1) & 2 ? -a : a;
    sine = quarter & 2 ? -b : b;
}

// Elements `at` and `at` + 64 of a direction, which are pair `pair`.
DEVICE void draw_pair(u64 key, u64 pair, u64 at, f64 zeroed, f32 (&z)[2]) {
    u64 bits = random_bits(key, pair);
    f32 u = f32(int(bits >> 40) + 1) * (1.0f / 16777216.0f), v = f32(int(u32(bits >> 8) >> 8)) * (1.0f / 16777216.0f);
    f32 radius = sqrtf(-2.0f * ln(u)), cosine, sine;
    turn(v, cosine, sine);
    z[0] = radius * cosine;
    z[1] = radius * sine;
    if (zeroed > 0.0) {
        u64 mask = key_part(key, ~0ull);
        if (f64(uniform(mask, at)) < zeroed) z[0] = 0.0f;
        if (f64(uniform(mask, at + 64)) < zeroed) z[1] = 0.0f;
    }
}

// The pairs of elements that a thread takes: `at` and `at` + 64, of which what is not below n is left out.
#define EACH_PAIR(pair, at, n)                                                                                         \
    for (u64 pair = u64(blockIdx.x) * THREADS + threadIdx.x, at = pair / 64 * 128 + pair % 64; at < (n);               \
         pair += u64(gridDim.x) * THREADS, at = pair / 64 * 128 + pair % 64)
#define BOTH(k) _Pragma("unroll") for (u32 k = 0; k < 2; ++k) if (at + 64 * k < n)

// The direction of one draw.
KERNEL(draw, T *z, u64 n, u64 key, f64 zeroed) {
    u64 own = key_part(key, 0);
    EACH_PAIR(pair, at, n) {
        f32 drawn[2];
        draw_pair(own, pair, at, zeroed, drawn);
        BOTH(k) z[at + 64 * k] = narrow<T>(drawn[k]);
    }
}

// y = x + by z of draw `draw`, or along the mean of `slopes` draws, each times its slope and `by`; x and y may be the same
KERNEL(perturb, const T *x, T *y, SLOPES, u32 slopes, u32 draw, u64 n, u64 key, f64 zeroed, f64 by) {
    const f32 *all[16] = ALL_SLOPES;
    EACH_PAIR(pair, at, n) {
        f32 v[2] = {};
        BOTH(k) v[k] = wide(x[at + 64 * k]);
#pragma unroll
        for (u32 i = 0; i < 16; ++i)
            if (i < slopes || (i == 0 && slopes == 0)) {
                f32 z[2], factor = slopes ? f32(by * f64(*all[i]) / f64(slopes)) : f32(by);
                draw_pair(key_part(key, slopes ? i : draw), pair, at, zeroed, z);
                BOTH(k) v[k] += factor * z[k];
            }
        BOTH(k) y[at + 64 * k] = narrow<T>(v[k]);
    }
}

// -1 or 1 where a step down or up lowers the loss most, 0 where neither does.
DEVICE f64 best(f32 here, f32 down, f32 up) {
    if (down < here && (down <= up || up != up)) return -1.0;
    return up < here ? 1.0 : 0.0;
}

// One update along drawn directions, or along a gradient that is given. `here`, `down`, `up` are the losses of CONSERVATIVE; a and b are states
KERNEL(descend, const T *given, SLOPES, u32 slopes, const f32 *here, const f32 *down, const f32 *up, T *parameter, f32 *master,
       T *a, T *b, u64 n, u64 key, f64 zeroed, f64 wide_rate, f32 rate, f32 decay, f32 keep, f32 beta1, f32 beta2, f32 eps,
       f32 correction1, f32 correction2) {
    const f32 *all[16] = ALL_SLOPES;
    const bool KEPT = RULE == MOMENTUM || RULE == ADAM;
    f64 way = RULE == CONSERVATIVE ? best(*here, *down, *up) : 0.0;
    EACH_PAIR(pair, at, n) {
        f32 w[2] = {}, g[2] = {};
        BOTH(k) w[k] = master ? master[at + 64 * k] : wide(parameter[at + 64 * k]);
        if (GIVEN) {
            BOTH(k) g[k] = wide(given[at + 64 * k]);
        }
        if (!KEPT && decay != 0.0f) {
            BOTH(k) w[k] *= 1.0f - rate * decay;
        }
        if (!KEPT && GIVEN) {
            BOTH(k) w[k] += -rate * g[k];
        }
        if (!GIVEN)
#pragma unroll
            for (u32 i = 0; i < 16; ++i)
                if (i < slopes) {
                    f64 slope = f64(*all[i]), by = slope;
                    if (RULE == SGD) by = -wide_rate * slope;
                    if (RULE == SIGN) by = slope == 0.0 ? 0.0 : slope != slope ? slope : -wide_rate * (slope > 0.0 ? 1.0 : -1.0);
                    if (RULE == CONSERVATIVE) by = way * wide_rate * slope;
                    f32 z[2], factor = f32(by / f64(slopes));
                    draw_pair(key_part(key, i), pair, at, zeroed, z);
                    BOTH(k) {
                        if (KEPT)
                            g[k] += factor * z[k];
                        else
                            w[k] += factor * z[k];
                    }
                }
        if (KEPT) {
            BOTH(k) {
                u64 i = at + 64 * k;
                g[k] += decay * w[k];
                if (RULE == MOMENTUM) {
                    f32 m = keep * wide(a[i]) + g[k];
                    w[k] -= rate * m;
                    a[i] = narrow<T>(m);
                } else {
                    f32 m = beta1 * wide(a[i]) + (1.0f - beta1) * g[k];
                    f32 v = beta2 * wide(b[i]) + (1.0f - beta2) * g[k] * g[k];
                    w[k] -= rate * (m / correction1) / (sqrtf(v / correction2) + eps);
                    a[i] = narrow<T>(m);
                    b[i] = narrow<T>(v);
                }
            }
        }
        BOTH(k) {
            if (master) master[at + 64 * k] = w[k];
            parameter[at + 64 * k] = narrow<T>(w[k]);
        }
    }
}

// (plus - other) / distance, 0 where it is not finite
KERNEL(slope, const f32 *plus, const f32 *other, f32 *into, f64 distance) {
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    f64 s = (f64(*plus) - f64(*other)) / distance;
    *into = fabs(s) < 1.7976931348623157e308 ? f32(s) : 0.0f;
}

// AdamW (with moments of four bytes or one), SGD and Lion: new weights and states from a gradient, in place. Steps made and taken apart.
//
// Floor: gradient read, weight and states read and written, at the bandwidth of memory: 28 bytes an element for AdamW with f32 states
// and a 16-bit parameter beside its f32 master. Some 15 operations an element.
//
// Compiled for: G (the format of the gradient), P (of the parameter), M (of Lion's momentum).

// What gradients are multiplied by; 1 without a guard. Nothing is updated where the guard says that they are not finite.
#define UNLESS_NOT_FINITE(coefficient, guard)                                                                          \
    [[maybe_unused]] f32 coefficient = (guard) ? (guard)[0] : 1.0f;                                                                     \
    if ((guard) && (guard)[1] == 0.0f) return

// The gradient and the weight, which is the master where there is one. Without a gradient (null) the parameter is one, whose step is
// taken from zero in its place.
DEVICE void load_both(const G *gradient, const P *parameter, const f32 *master, f32 coefficient, u64 i, u64 n,
                      f32 (&g)[PACK], f32 (&w)[PACK]) {
    if (gradient)
        load(gradient, i, n, g);
    else
        load(parameter, i, n, g);
    EACH(k) g[k] *= coefficient;
    if (!gradient) {
        EACH(k) w[k] = 0.0f;
    } else if (master)
        load(master, i, n, w);
    else
        load(parameter, i, n, w);
}
DEVICE void store_weight(P *parameter, f32 *master, u64 i, u64 n, const f32 (&w)[PACK]) {
    if (master) store(master, i, n, w);
    store(parameter, i, n, w);
}

// The constants are those of `Moments` in src/graph/op/optimizer/adamw.rs.
KERNEL(adamw, const G *gradient, P *parameter, f32 *master, f32 *m, f32 *v, const f32 *guard, u64 n, f32 keep, f32 mean,
       f32 beta2, f32 square, f32 root, f32 eps, f32 rate) {
    UNLESS_NOT_FINITE(coefficient, guard);
    EACH_PACK(i, n) {
        f32 g[PACK], w[PACK], a[PACK], b[PACK];
        load_both(gradient, parameter, master, coefficient, i, n, g, w);
        load(m, i, n, a);
        load(v, i, n, b);
        EACH(k) {
            a[k] += mean * (g[k] - a[k]);
            b[k] = beta2 * b[k] + square * g[k] * g[k];
            f32 step = a[k] / (sqrtf(b[k]) * root + eps);
            w[k] = w[k] * keep - rate * step;
        }
        store(m, i, n, a);
        store(v, i, n, b);
        store_weight(parameter, master, i, n, w);
    }
}

// Without a buffer it is null.
KERNEL(sgd, const G *gradient, P *parameter, f32 *master, f32 *buffer, const f32 *guard, u64 n, f32 rate, f32 momentum,
       f32 decay, u32 nesterov) {
    UNLESS_NOT_FINITE(coefficient, guard);
    EACH_PACK(i, n) {
        f32 g[PACK], w[PACK], b[PACK];
        load_both(gradient, parameter, master, coefficient, i, n, g, w);
        if (buffer) {
            load(buffer, i, n, b);
            EACH(k) {
                f32 slope = g[k] + decay * w[k];
                b[k] = momentum * b[k] + slope;
                f32 ahead = slope + momentum * b[k];
                w[k] -= rate * (nesterov ? ahead : b[k]);
            }
            store(buffer, i, n, b);
        } else {
            EACH(k) w[k] -= rate * (g[k] + decay * w[k]);
        }
        store_weight(parameter, master, i, n, w);
    }
}

KERNEL(lion, const G *gradient, P *parameter, f32 *master, M *momentum, const f32 *guard, u64 n, f32 keep, f32 rate,
       f32 mix_momentum, f32 mix_gradient, f32 hold_momentum, f32 hold_gradient) {
    UNLESS_NOT_FINITE(coefficient, guard);
    EACH_PACK(i, n) {
        f32 g[PACK], w[PACK], m[PACK];
        load_both(gradient, parameter, master, coefficient, i, n, g, w);
        load(momentum, i, n, m);
        EACH(k) {
            f32 mixed = mix_momentum * m[k] + mix_gradient * g[k];
            f32 sign = f32(mixed > 0.0f) - f32(mixed < 0.0f);
            w[k] = w[k] * keep - rate * sign;
            m[k] = hold_momentum * m[k] + hold_gradient * g[k];
        }
        store(momentum, i, n, m);
        store_weight(parameter, master, i, n, w);
    }
}

// Eight moments of a byte each, cut at n; i is a multiple of eight.
typedef Pack<u8> Codes;
DEVICE Codes codes_at(const u8 *x, u64 i, u64 n) {
    Codes codes = {};
    if (i + PACK <= n && is_packed(x)) return *reinterpret_cast<const Codes *>(x + i);
    EACH(k) if (i + k < n) codes.at[k] = x[i + k];
    return codes;
}
DEVICE void put_codes(u8 *x, u64 i, u64 n, const Codes &codes) {
    if (i + PACK <= n && is_packed(x)) {
        *reinterpret_cast<Codes *>(x + i) = codes;
    } else {
        EACH(k) if (i + k < n) x[i + k] = codes.at[k];
    }
}

// AdamW with moments of a byte each: a warp takes 256 elements, which share a scale.
KERNEL(adamw8bit, const G *gradient, P *parameter, f32 *master, u8 *m, u8 *v, f32 *m_scale, f32 *v_scale, const f32 *guard,
       u64 n, f32 keep, f32 mean, f32 beta2, f32 square, f32 root, f32 eps, f32 rate) {
    SHARED(f32, means, 256);
    SHARED(f32, mean_middles, 256);
    SHARED(f32, squares, 256);
    SHARED(f32, square_middles, 256);
    dynamic_map(means, mean_middles, true);
    dynamic_map(squares, square_middles, false);
    __syncthreads();
    UNLESS_NOT_FINITE(coefficient, guard);
    u64 blocks = (n + 255) / 256;
    for (u64 block = u64(blockIdx.x) * WARPS + warp(); block < blocks; block += u64(gridDim.x) * WARPS) {
        u64 i = block * 256 + lane() * PACK;
        f32 g[PACK], w[PACK], a[PACK], b[PACK], most_a = 0.0f, most_b = 0.0f;
        load_both(gradient, parameter, master, coefficient, i, n, g, w);
        f32 a_scale = m_scale[block], b_scale = v_scale[block];
        Codes a_codes = codes_at(m, i, n), b_codes = codes_at(v, i, n);
        EACH(k) {
            bool inside = i + k < n;
            a[k] = inside ? means[a_codes.at[k]] * a_scale : 0.0f;
            b[k] = inside ? squares[b_codes.at[k]] * b_scale : 0.0f;
            a[k] += mean * (g[k] - a[k]);
            b[k] = beta2 * b[k] + square * g[k] * g[k];
            f32 step = a[k] / (sqrtf(b[k]) * root + eps);
            w[k] = w[k] * keep - rate * step;
            most_a = inside && fabsf(a[k]) > most_a ? fabsf(a[k]) : most_a;
            most_b = inside && fabsf(b[k]) > most_b ? fabsf(b[k]) : most_b;
        }
        most_a = warp_max(most_a);
        most_b = warp_max(most_b);
        EACH(k) {
            a_codes.at[k] = dynamic_code(mean_middles, most_a > 0.0f ? a[k] / most_a : 0.0f);
            b_codes.at[k] = dynamic_code(square_middles, most_b > 0.0f ? b[k] / most_b : 0.0f);
        }
        put_codes(m, i, n, a_codes);
        put_codes(v, i, n, b_codes);
        if (lane() == 0) {
            m_scale[block] = most_a;
            v_scale[block] = most_b;
        }
        store_weight(parameter, master, i, n, w);
    }
}

// w = w keep - rate step; the guard only says whether
KERNEL(take_step, const G *step, P *parameter, f32 *master, const f32 *guard, u64 n, f32 keep, f32 rate) {
    UNLESS_NOT_FINITE(coefficient, guard);
    EACH_PACK(i, n) {
        f32 s[PACK], w[PACK];
        load_both(step, parameter, master, 1.0f, i, n, s, w);
        EACH(k) w[k] = w[k] * keep - rate * s[k];
        store_weight(parameter, master, i, n, w);
    }
}

// w = (w - rate step) keep, of a step in f32
KERNEL(take_low, const f32 *step, P *parameter, f32 *master, const f32 *guard, u64 n, f32 rate, f32 keep) {
    UNLESS_NOT_FINITE(coefficient, guard);
    EACH_PACK(i, n) {
        f32 s[PACK], w[PACK];
        load(step, i, n, s);
        if (master)
            load(master, i, n, w);
        else
            load(parameter, i, n, w);
        EACH(k) w[k] = (w[k] - rate * s[k]) * keep;
        store_weight(parameter, master, i, n, w);
    }
}

// MicroAdam: the accumulator, its largest of each block into the window, codes of the rest, and the step from the window's moments.
//
// Floor: the gradient read and written twice (the largest must be known before the first step is), the weight read and written once, half a
// byte of codes read and written, and the window read: for 16-bit weights and gradients, ten rows and 1 % about 13.4 bytes an element, and
// some 40 operations. The gradient is written once more, and read thrice more for the threshold, from the cache: a block's
// elements lie within 128 KiB of 16-bit numbers. Results have the bits of the definition: whole numbers decide what is taken, and each moment is summed over
// the rows in their order.
//
// Compiled for: G (the format of gradient and accumulator), P (of the parameter).

#define TILE 2048 // elements of which a block holds the moments
#define BINS 2048 // of the first digit of a size: its exponent and three bits more, so that few elements share a bin
#define DIGIT 10 // bits of each of the two digits behind it

#define UNLESS_NOT_FINITE(guard) if ((guard) && (guard)[1] == 0.0f) return

// What code `half` stands for, of a range of codes from `low` to `high`.
DEVICE f32 left_out(u32 half, f32 low, f32 high) {
    f32 unit = (high - low) / 15.0f;
    return f32(half) * unit + low;
}
// The code of an element: the first of two lies in the high half.
DEVICE u32 code_at(const u8 *codes, u64 i) { return i % 2 ? codes[i / 2] & 15 : codes[i / 2] >> 4; }

// Sums over the threads before this one and over all: `room` is shared, a word a warp.
DEVICE u32 sum_before(u32 mine, u32 *room, u32 &all) {
    u32 up_to = mine;
#pragma unroll
    for (u32 apart = 1; apart < 32; apart *= 2) {
        u32 other = __shfl_up_sync(~0u, up_to, apart);
        up_to += lane() >= apart ? other : 0;
    }
    __syncthreads(); // the last sums have been read
    if (lane() == 31) room[warp()] = up_to;
    __syncthreads();
    u32 before = up_to - mine;
    all = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
        before += w < warp() ? room[w] : 0;
        all += room[w];
    }
    return before;
}

// The digit that the last of the `left` largest has; `left` becomes how many are wanted of those that have it. Each thread takes some bins,
// from the highest down; the one in whose bins the last lies goes through them.
DEVICE u32 digit_of(const u32 *bins, u32 *room, u32 *found, u32 &left) {
    const u32 EACH_TAKES = BINS / THREADS;
    u32 bin = BINS - 1 - threadIdx.x * EACH_TAKES, mine = 0, all;
    for (u32 k = 0; k < EACH_TAKES; ++k) mine += bins[bin - k];
    u32 above = sum_before(mine, room, all);
    if (above < left && left <= above + mine) {
        while (above + bins[bin] < left) above += bins[bin--];
        found[0] = bin;
        found[1] = left - above;
    }
    __syncthreads();
    left = found[1];
    return found[0];
}

// Block: one block of `length` elements. The gradient becomes the accumulator, of which the largest, of two as large the first, go to row
// `now` of the window in the order of their places. Where the gradient is not finite the row becomes empty.
KERNEL(microadam_select, G *gradient, const u8 *codes, const bf16 *low, const bf16 *high, u16 *index, bf16 *value, const f32 *guard,
       u64 n, u64 length, u64 kept, u64 all, u64 quant, u32 now) {
    SHARED(u32, bins, BINS);
    SHARED(u32, room, WARPS);
    SHARED(u32, found, 2);
    u64 first = blockIdx.x * length, count = first + length < n ? length : n - first;
    u64 row = now * all + blockIdx.x * kept;
    u32 wanted = u32(kept < all - blockIdx.x * kept ? kept : all - blockIdx.x * kept);
    if (guard && guard[1] == 0.0f) {
        for (u64 i = threadIdx.x; i < wanted; i += THREADS) value[row + i] = narrow<bf16>(0.0f);
        return;
    }
    f32 scale = guard ? guard[0] : 1.0f;
    G *a = gradient + first;
    u32 left = wanted, threshold = 0;
    for (u32 shift = 2 * DIGIT;; shift -= DIGIT) {
        bool is_first = shift == 2 * DIGIT;
        for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) bins[bin] = 0;
        __syncthreads();
        for (u64 i = threadIdx.x * PACK; i < count; i += THREADS * PACK) {
            f32 x[PACK];
            load(a, i, count, x);
            if (is_first) {
                EACH(k) if (i + k < count) {
                    u64 at = first + i + k, range = at / quant;
                    f32 rest = left_out(code_at(codes, at), wide(low[range]), wide(high[range]));
                    x[k] = wide(narrow<G>(scale * x[k] + 1.0f * rest));
                }
                store(a, i, count, x);
            }
            EACH(k) if (i + k < count) {
                u32 size = __float_as_uint(fabsf(x[k])), digit = is_first ? size >> shift : size >> shift & ((1 << DIGIT) - 1);
                if (is_first || size >> (shift + DIGIT) == threshold) atomicAdd(bins + digit, 1u);
            }
        }
        __syncthreads();
        threshold = threshold << DIGIT | digit_of(bins, room, found, left);
        if (shift == 0) break;
    }
    // `left` of those at the threshold are taken, the first ones.
    u32 taken = 0, even = 0;
    for (u64 from = 0; from < count; from += THREADS * PACK) {
        u64 i = from + threadIdx.x * PACK;
        f32 x[PACK];
        u32 above = 0, equal = 0, counts;
        load(a, i, count, x);
        EACH(k) if (i + k < count) {
            u32 size = __float_as_uint(fabsf(x[k]));
            above += size > threshold;
            equal += size == threshold;
        }
        u32 before = sum_before(above << 16 | equal, room, counts);
        u32 evens = even + (before & 0xffff), place = taken + (before >> 16) + (evens < left ? evens : left);
        EACH(k) if (i + k < count) {
            u32 size = __float_as_uint(fabsf(x[k]));
            bool takes = size > threshold || (size == threshold && evens < left);
            evens += size == threshold;
            if (takes) {
                index[row + place] = u16(i + k);
                value[row + place] = narrow<bf16>(x[k]);
                a[i + k] = narrow<G>(0.0f);
                ++place;
            }
        }
        taken += counts >> 16;
        even += counts & 0xffff;
    }
}

// A warp: the elements that share a range, their ends and codes.
KERNEL(microadam_keep, const G *a, u8 *codes, bf16 *low, bf16 *high, const f32 *guard, u64 n, u64 quant) {
    UNLESS_NOT_FINITE(guard);
    u64 ranges = (n + quant - 1) / quant;
    for (u64 range = u64(blockIdx.x) * WARPS + warp(); range < ranges; range += u64(gridDim.x) * WARPS) {
        u64 first = range * quant, end = first + quant < n ? first + quant : n;
        f32 least = INFINITE, most = -INFINITE;
        for (u64 i = first + lane(); i < end; i += 32) {
            f32 x = wide(a[i]);
            least = x < least ? x : least;
            most = x > most ? x : most;
        }
        least = -warp_max(-least);
        most = warp_max(most);
        bf16 ends[2] = {narrow<bf16>(least), narrow<bf16>(most)};
        f32 from = wide(ends[0]), unit = (wide(ends[1]) - from) / 15.0f;
        for (u64 i = first + 2 * lane(); i < end; i += 64) {
            u32 pair = 0;
#pragma unroll
            for (u32 k = 0; k < 2; ++k) {
                if (i + k >= end || !(unit > 0.0f)) continue;
                f32 code = floorf((wide(a[i + k]) - from) / unit + 0.5f);
                pair |= (code >= 15.0f ? 15 : code > 0.0f ? u32(code) : 0) << (k ? 0 : 4);
            }
            codes[i / 2] = u8(pair);
        }
        if (lane() == 0) {
            low[range] = ends[0];
            high[range] = ends[1];
        }
    }
}

// beta^age, by squaring as the host does.
DEVICE f32 weight_of(f64 beta, u32 age) {
    f64 power = 1.0;
    for (;;) {
        if (age & 1) power *= beta;
        age /= 2;
        if (age == 0) return f32(power);
        beta *= beta;
    }
}

// The first of `count` places in their order that is not below `least`.
DEVICE u64 reached(const u16 *places, u64 count, u32 least) {
    u64 from = 0;
    while (count > 0) {
        u64 half = count / 2;
        bool below = places[from + half] < least;
        from += below ? half + 1 : 0;
        count = below ? count - half - 1 : half;
    }
    return from;
}

// Block: `TILE` elements of one of the window's blocks (x: block, y: tile), whose moments lie in shared memory. Rows of the window come one
// after the other, and in a row each place once, so that each moment is summed in the order of rows. The step takes the accumulator's place,
// with share `alpha` of what was left out, and the weight moves.
KERNEL(microadam_step, G *gradient, P *parameter, f32 *master, const u16 *index, const bf16 *value, const u8 *codes, const bf16 *low,
       const bf16 *high, const f32 *guard, u64 n, u64 length, u64 kept, u64 all, u64 quant, u64 step, u32 window, f64 beta1, f64 beta2,
       f32 c1, f32 c2, f32 eps, f32 alpha, f32 keep, f32 rate) {
    SHARED(f32, m, TILE);
    SHARED(f32, v, TILE);
    UNLESS_NOT_FINITE(guard);
    u64 first = blockIdx.x * length, count = first + length < n ? length : n - first;
    u64 begin = u64(blockIdx.y) * TILE, rows = window < step ? window : step;
    if (begin >= count) return;
    u64 end = begin + TILE < count ? begin + TILE : count;
    for (u32 at = threadIdx.x; at < TILE; at += THREADS) m[at] = v[at] = 0.0f;
    u64 from = blockIdx.x * kept, own = from + kept < all ? kept : all - from;
    for (u64 row = 0; row < rows; ++row) {
        u32 age = u32((step - 1 - row) % window);
        f32 b1 = weight_of(beta1, age), b2 = weight_of(beta2, age);
        const u16 *places = index + row * all + from;
        const bf16 *values = value + row * all + from;
        u64 low_at = reached(places, own, u32(begin)), high_at = reached(places, own, u32(end));
        __syncthreads();
        for (u64 at = low_at + threadIdx.x; at < high_at; at += THREADS) {
            u32 i = u32(places[at] - begin);
            f32 x = wide(values[at]);
            m[i] += b1 * x;
            v[i] += b2 * x * x;
        }
    }
    __syncthreads();
    for (u64 i = begin + threadIdx.x * PACK; i < end; i += THREADS * PACK) {
        f32 s[PACK], w[PACK];
        u64 at = first + i;
        EACH(k) {
            u32 own_at = u32(i + k - begin);
            bool inside = i + k < end;
            s[k] = inside ? c1 * m[own_at] / (sqrtf(c2 * v[own_at]) + eps) : 0.0f;
            s[k] = wide(narrow<G>(s[k]));
            if (alpha != 0.0f && inside) {
                u64 range = (at + k) / quant;
                s[k] = 1.0f * s[k] + alpha * left_out(code_at(codes, at + k), wide(low[range]), wide(high[range]));
                s[k] = wide(narrow<G>(s[k]));
            }
        }
        store(gradient, at, first + end, s);
        if (master)
            load(master, at, first + end, w);
        else
            load(parameter, at, first + end, w);
        EACH(k) w[k] = w[k] * keep - rate * s[k];
        if (master) store(master, at, first + end, w);
        store(parameter, at, first + end, w);
    }
}

// What is left out of what was left out: the same codes of a narrower range.
KERNEL(microadam_rest, bf16 *low, bf16 *high, const f32 *guard, u64 ranges, f32 rest) {
    UNLESS_NOT_FINITE(guard);
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < ranges; i += u64(gridDim.x) * THREADS) {
        low[i] = narrow<bf16>(wide(low[i]) * rest);
        high[i] = narrow<bf16>(wide(high[i]) * rest);
    }
}

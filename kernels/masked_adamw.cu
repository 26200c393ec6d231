// Adam that changes the coordinates with the largest directions only: their sizes, the threshold that so many reach, the update.
//
// Floor: gradient and moments read for each pass (one for sums, four for the threshold, one for the update), written once; some 18
// operations an element. Counts are whole numbers, so that atomics add up to the same in any order.
//
// Compiled for: G (the format of gradients), P (of the parameter).

#define DIGIT 12
#define BINS (1 << DIGIT)

// Adam's constants at unit rate, as `Moments` has them.
#define RULE f32 mean, f32 beta2, f32 square, f32 root, f32 eps, f32 unit

DEVICE f32 ahead(f32 g, f32 &m, f32 &v, f32 mean, f32 beta2, f32 square, f32 root, f32 eps, f32 unit) {
    m = m + mean * (g - m);
    v = beta2 * v + square * g * g;
    return unit * (m / (sqrtf(v) * root + eps));
}

// By what coordinates are ranked: the direction to the eight bits of a bfloat16, then the gradient.
DEVICE u64 rank_of(f32 direction, f32 g) {
    u32 bits = __float_as_uint(fabsf(direction)), up = bits + 0x8000u;
    return u64((up < bits ? ~0u : up) >> 16) << 32 | __float_as_uint(fabsf(g));
}

// Part blockIdx.x of Σ direction²; moments are zero where null
KERNEL(direction_parts, const G *gradient, const f32 *m, const f32 *v, const f32 *guard, f64 *parts, u64 n, RULE) {
    SHARED(f64, room, WARPS);
    f32 scale = guard && guard[1] != 0.0f ? guard[0] : 1.0f;
    u64 count = ((n + gridDim.x - 1) / gridDim.x + PACK - 1) / PACK * PACK, first = count * blockIdx.x;
    u64 end = first + count < n ? first + count : n;
    f64 sum = 0.0;
    for (u64 i = first + threadIdx.x * PACK; i < end; i += THREADS * PACK) {
        f32 g[PACK], a[PACK] = {}, b[PACK] = {};
        load(gradient, i, end, g);
        if (m) load(m, i, end, a);
        if (v) load(v, i, end, b);
        EACH(k) if (i + k < end) {
            f32 direction = ahead(g[k] * scale, a[k], b[k], mean, beta2, square, root, eps, unit);
            sum += f64(direction) * f64(direction);
        }
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

KERNEL(direction_total, const f64 *parts, f32 *into, u32 count) {
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    f64 sum = parts[0];
    for (u32 part = 1; part < count; ++part) sum += parts[part];
    *into = f32(sum);
}

// state: the digits found so far and how many coordinates are left to find among those that begin with them; behind it the counts of a digit.
// Before a digit is counted: counts are zeroed and, before the first, state is set.
KERNEL(threshold_begin, u64 *state, u32 is_first, u64 keep) {
    u32 *counts = reinterpret_cast<u32 *>(state + 2);
    for (u32 bin = blockIdx.x * THREADS + threadIdx.x; bin < BINS; bin += gridDim.x * THREADS) counts[bin] = 0;
    if (is_first && blockIdx.x == 0 && threadIdx.x == 0) {
        state[0] = 0;
        state[1] = keep;
    }
}

// Counts the digit from bit `shift` on of one tensor's coordinates that begin with the digits found: a block counts for itself first, as most
// coordinates share few digits.
KERNEL(threshold_count, const G *gradient, const f32 *m, const f32 *v, const f32 *guard, u64 *state, u64 n, u32 shift, RULE) {
    SHARED(u32, bins, BINS);
    u32 *counts = reinterpret_cast<u32 *>(state + 2);
    u64 prefix = state[0];
    for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) bins[bin] = 0;
    __syncthreads();
    f32 scale = guard && guard[1] != 0.0f ? guard[0] : 1.0f;
    EACH_PACK(i, n) {
        f32 g[PACK], a[PACK], b[PACK];
        load(gradient, i, n, g);
        load(m, i, n, a);
        load(v, i, n, b);
        EACH(k) if (i + k < n) {
            f32 own = g[k] * scale, direction = ahead(own, a[k], b[k], mean, beta2, square, root, eps, unit);
            u64 rank = rank_of(direction, own) >> shift;
            if (rank >> DIGIT == prefix) atomicAdd(bins + (rank & (BINS - 1)), 1u);
        }
    }
    __syncthreads();
    for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS)
        if (bins[bin] > 0) atomicAdd(counts + bin, bins[bin]);
}

// The digit of the last coordinate that is kept; after the last digit, the threshold. Each thread of one block adds up some bins, from the
// highest down; the one in whose bins the last coordinate lies goes through them.
KERNEL(threshold_digit, u64 *state, f32 *into, u32 is_last) {
    SHARED(u64, sums, THREADS);
    const u32 EACH_TAKES = BINS / THREADS;
    const u32 *counts = reinterpret_cast<const u32 *>(state + 2);
    if (blockIdx.x > 0) return;
    u64 left = state[1], above = 0, mine = 0;
    u32 bin = BINS - 1 - threadIdx.x * EACH_TAKES;
    for (u32 k = 0; k < EACH_TAKES; ++k) mine += counts[bin - k];
    sums[threadIdx.x] = mine;
    __syncthreads();
    for (u32 t = 0; t < threadIdx.x; ++t) above += sums[t];
    bool begins = threadIdx.x == 0 || above < left, ends = threadIdx.x == THREADS - 1 || left <= above + mine;
    if (!begins || !ends) return;
    left -= above;
    while (bin > 0 && counts[bin] < left) {
        left -= counts[bin];
        --bin;
    }
    u64 prefix = state[0] << DIGIT | bin;
    state[0] = prefix;
    state[1] = left;
    if (is_last) {
        into[0] = __uint_as_float(u32(prefix >> 32) << 16);
        into[1] = __uint_as_float(u32(prefix));
    }
}

// threshold: null where all weights move
KERNEL(masked_adamw, const G *gradient, P *parameter, f32 *m, f32 *v, const f32 *threshold, const f32 *guard, u64 n, RULE, f32 rate,
       f32 keep) {
    if (guard && guard[1] == 0.0f) return;
    f32 scale = guard ? guard[0] : 1.0f;
    u64 least = threshold ? u64(__float_as_uint(threshold[0]) >> 16) << 32 | __float_as_uint(threshold[1]) : 0;
    EACH_PACK(i, n) {
        f32 g[PACK], w[PACK], a[PACK], b[PACK];
        load(gradient, i, n, g);
        load(parameter, i, n, w);
        load(m, i, n, a);
        load(v, i, n, b);
        EACH(k) {
            f32 own = g[k] * scale, direction = ahead(own, a[k], b[k], mean, beta2, square, root, eps, unit);
            if (rank_of(direction, own) >= least) w[k] = w[k] * keep - rate * direction;
        }
        store(m, i, n, a);
        store(v, i, n, b);
        store(parameter, i, n, w);
    }
}

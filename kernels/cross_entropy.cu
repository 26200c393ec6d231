// Softmax cross entropy, with its gradient in the logits' place, and its tangent.
//
// Floor: logits read, and with the gradient read again and written: 2 or 3 values an element at the bandwidth of memory (a row of
// 128,256 logits does not fit the first cache). An exponential for each, twice with the gradient; two with a cap.
//
// Compiled for: T, CAP (whether logits are bent), GRADIENT (whether it is made).

#define IGNORED 0xffffffffu

// A logit, bent below the cap.
DEVICE f32 bend(f32 logit, f32 cap) { return CAP ? cap * tanh_f32(logit / cap) : logit; }

// One row a block: its loss in double precision and, in place, its gradient. scale: one over the tokens that count, the loss scale
KERNEL(cross_entropy, T *logits, const u32 *targets, const f32 *scale, f64 *losses, u64 rows, u32 c, f32 cap) {
    SHARED(f32, room, WARPS);
    SHARED(f64, wide_room, WARPS);
    for (u64 n = blockIdx.x; n < rows; n += gridDim.x) {
        T *row = logits + n * c;
        u32 target = targets[n];
        if (target == IGNORED) {
            f32 zero[PACK] = {};
            if (GRADIENT)
                for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) store(row, i, c, zero);
            if (threadIdx.x == 0) losses[n] = 0.0;
            continue;
        }
        // A target outside of the vocabulary reads nothing and gives NaN.
        f32 wanted = target < c ? bend(wide(row[target]), cap) : __uint_as_float(0x7fc00000u);
        // Each thread's greatest and its sum relative to that (Milakov and Gimelshein 2018), then brought to the row's.
        f32 top = -INFINITE, sum = 0.0f;
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 z[PACK], above = top;
            load(row, i, c, z);
            EACH(k) {
                z[k] = i + k < c ? bend(z[k], cap) : -INFINITE;
                above = z[k] > above ? z[k] : above;
            }
            f32 base = above == -INFINITE ? 0.0f : above;
            sum = sum * exp_f32(top - base);
            EACH(k) sum += i + k < c ? exp_f32(z[k] - base) : 0.0f;
            top = above;
        }
        f32 above = block_max(top, room), base = above == -INFINITE ? 0.0f : above;
        f64 total = block_sum(f64(sum) * f64(exp_f32(top - base)), wide_room);
        if (threadIdx.x == 0) losses[n] = f64(base) + log(total) - f64(wanted);
        if (!GRADIENT) continue;
        f32 seed = scale[0] * scale[1], share = f32(f64(seed) / total);
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 z[PACK];
            load(row, i, c, z);
            EACH(k) {
                f32 bent = bend(z[k], cap), g = share * exp_f32(bent - base);
                if (i + k == target) g -= seed;
                if (CAP) g *= 1.0f - (bent / cap) * (bent / cap);
                z[k] = g;
            }
            store(row, i, c, z);
        }
    }
}

// loss = scale[0] Σ losses, by one block: each thread in its order, then the threads
KERNEL(cross_entropy_total, const f64 *losses, const f32 *scale, f32 *loss, u64 rows) {
    SHARED(f64, room, WARPS);
    f64 sum = 0.0;
    for (u64 n = threadIdx.x; n < rows; n += THREADS) sum += losses[n];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *loss = f32(sum * f64(scale[0]));
}

// Each row's product of gradient and tangent.
KERNEL(cross_entropy_along, const T *gradient, const T *tangent, f64 *sums, u64 rows, u32 c) {
    SHARED(f64, room, WARPS);
    for (u64 n = blockIdx.x; n < rows; n += gridDim.x) {
        f32 sum = 0.0f;
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 g[PACK], t[PACK];
            load(gradient + n * c, i, c, g);
            load(tangent + n * c, i, c, t);
            EACH(k) sum += g[k] * t[k];
        }
        f64 all = block_sum(f64(sum), room);
        if (threadIdx.x == 0) sums[n] = all;
    }
}

// loss = Σ sums / loss scale (1 where `scale` is null)
KERNEL(cross_entropy_tangent, const f64 *sums, const f32 *scale, f32 *loss, u64 rows) {
    SHARED(f64, room, WARPS);
    f64 sum = 0.0;
    for (u64 n = threadIdx.x; n < rows; n += THREADS) sum += sums[n];
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) *loss = f32(scale ? sum / f64(scale[1]) : sum);
}

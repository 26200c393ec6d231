// The same rows before those of every sequence, sequences without their first rows, and the gradient of such rows.
//
// Floor: each value once, at the bandwidth of memory.
//
// Compiled for: T, G (the format of the rows' gradient).

// y (B, P + S): `prefix` (P), then a sequence of x (B, S); P and S in elements
KERNEL(prepend, const T *prefix, const T *x, T *y, u64 batch, u64 p, u64 s) {
    u64 width = p + s, n = batch * width;
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < n; i += u64(gridDim.x) * THREADS) {
        u64 b = i / width, at = i % width;
        y[i] = at < p ? prefix[at] : x[b * s + at - p];
    }
}

// made (P) (+)= Σ dy (B, P + S) over sequences, in their order; `width` is P + S
KERNEL(prepend_backward, const T *dy, G *made, u64 batch, u64 p, u64 width, u32 accumulate) {
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < p; i += u64(gridDim.x) * THREADS) {
        f32 sum = 0.0f;
        for (u64 b = 0; b < batch; ++b) sum += wide(dy[b * width + i]);
        f32 before = accumulate ? wide(made[i]) : 0.0f;
        made[i] = narrow<G>(before + sum);
    }
}

// y (B, S): x (B, P + S) without its first P
KERNEL(trim, const T *x, T *y, u64 batch, u64 p, u64 s) {
    u64 n = batch * s;
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < n; i += u64(gridDim.x) * THREADS)
        y[i] = x[i / s * (p + s) + p + i % s];
}

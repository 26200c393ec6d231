// The norm of all gradients, and what to do with gradients of this size.
//
// Floor: each gradient once, at the bandwidth of memory; two operations an element.
//
// Compiled for: T.

// Part blockIdx.x of Σ x²: each thread's squares in f32 eight at a time, joined in f64 in a fixed order.
KERNEL(square_parts, const T *x, f64 *parts, u64 n) {
    SHARED(f64, room, WARPS);
    u64 count = ((n + gridDim.x - 1) / gridDim.x + PACK - 1) / PACK * PACK, first = count * blockIdx.x;
    u64 end = first + count < n ? first + count : n;
    f64 sum = 0.0;
    for (u64 i = first + threadIdx.x * PACK; i < end; i += THREADS * PACK) {
        f32 v[PACK], squares = 0.0f;
        load(x, i, end, v);
        EACH(k) squares += v[k] * v[k];
        sum += f64(squares);
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

KERNEL(square_total, const f64 *parts, f32 *into, u32 count) {
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    f64 sum = parts[0];
    for (u32 part = 1; part < count; ++part) sum += parts[part];
    *into = f32(sum);
}

// Adds up to eight sums to the sum so far, which lies in the guard's first 8 bytes until it is made.
KERNEL(clip_add, f32 *guard, const f32 *a, const f32 *b, const f32 *c, const f32 *d, const f32 *e, const f32 *f,
       const f32 *g, const f32 *h, u32 first) {
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    const f32 *sums[8] = {a, b, c, d, e, f, g, h};
    f64 *all = reinterpret_cast<f64 *>(guard);
    f64 sum = first ? 0.0 : *all;
#pragma unroll
    for (u32 i = 0; i < 8; ++i)
        if (sums[i]) sum += f64(*sums[i]);
    *all = sum;
}

// guard = what to multiply gradients by, whether they are finite, their norm; `most` is the norm to clip to, or 0
KERNEL(clip_scale, f32 *guard, const f32 *scale, f64 most) {
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    f64 sum = *reinterpret_cast<f64 *>(guard), by = scale ? f64(scale[1]) : 1.0;
    f64 norm = sqrt(sum) / by, clip = most > 0.0 ? most / (norm + 1e-6) : 1.0;
    guard[0] = f32((clip < 1.0 ? clip : 1.0) / by);
    guard[1] = fabs(sum) < 1.7976931348623157e308 ? 1.0f : 0.0f;
    guard[2] = f32(norm);
}

// The gradient of a bias: sums of the columns of dy.
//
// Floor: dy once, at the bandwidth of memory; one sum an element.
//
// Compiled for: T (the format of dy), G (the format of the gradient).

// 32 columns of the rows of part blockIdx.y: each warp adds rows in their order, and warps are added in theirs. parts (parts, c)
KERNEL(bias_parts, const T *dy, f32 *parts, u64 rows, u32 c) {
    SHARED(f32, sums, THREADS);
    u32 column = blockIdx.x * 32 + lane();
    u64 count = (rows + gridDim.y - 1) / gridDim.y, first = count * blockIdx.y;
    u64 end = first + count < rows ? first + count : rows;
    f32 sum = 0.0f;
    if (column < c)
#pragma unroll 4
        for (u64 row = first + warp(); row < end; row += WARPS) sum += wide(dy[row * c + column]);
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp() > 0 || column >= c) return;
    for (u32 w = 1; w < WARPS; ++w) sum += sums[32 * w + lane()];
    parts[u64(blockIdx.y) * c + column] = sum;
}

// The sums of all parts, in their order.
KERNEL(bias_total, const f32 *parts, G *into, u32 count, u32 c) {
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < c; i += u64(gridDim.x) * THREADS) {
        f32 sum = parts[i];
        for (u32 part = 1; part < count; ++part) sum += parts[u64(part) * c + i];
        into[i] = narrow<G>(sum);
    }
}

// d (m, n) = alpha a (m, k) b (k, n): the product where cuBLASLt is not there or does not take the formats, and products of experts,
// whose rows are known on the device only.
//
// Floor: 2 m n k operations on the units for f32; a 64 by 64 tile reads each operand 64 times less often than it is used. Every
// element is one chain of fused multiply-adds over k in its order, so its bits depend on nothing but its row and its column.
//
// Compiled for: A, B, D (the formats of the operands and of the result).

#define TILE 64
#define DEPTH 16
#define LINE (TILE + 4)

// element (i, j) of a matrix, 0 outside of (rows, columns)
template <class T> DEVICE f32 element(const T *x, u64 stride, u32 transposed, u64 i, u64 j, u64 rows, u64 columns) {
    if (i >= rows || j >= columns) return 0.0f;
    return wide(transposed ? x[j * stride + i] : x[i * stride + j]);
}

// One tile of the product. left (depth, row) and right (depth, column) are shared
DEVICE void tile(f32 *left, f32 *right, const A *a, const B *b, D *d, const D *bias, u64 m, u64 n, u64 k, u64 a_stride,
                 u64 b_stride, u64 d_stride, u32 a_transposed, u32 b_transposed, f32 alpha, u32 accumulate) {
    u64 row = u64(blockIdx.y) * TILE, column = u64(blockIdx.x) * TILE;
    u32 t = threadIdx.x, y = t / 16, x = t % 16;
    f32 sum[4][4] = {};
    for (u64 from = 0; from < k; from += DEPTH) {
#pragma unroll
        for (u32 part = 0; part < TILE * DEPTH / THREADS; ++part) {
            // neighbours in a warp read neighbours in memory
            u32 i = a_transposed ? t % TILE : t / DEPTH + THREADS / DEPTH * part;
            u32 p = a_transposed ? t / TILE + THREADS / TILE * part : t % DEPTH;
            left[p * LINE + i] = element(a, a_stride, a_transposed, row + i, from + p, m, k);
            u32 j = b_transposed ? t / DEPTH + THREADS / DEPTH * part : t % TILE;
            u32 q = b_transposed ? t % DEPTH : t / TILE + THREADS / TILE * part;
            right[q * LINE + j] = element(b, b_stride, b_transposed, from + q, column + j, k, n);
        }
        __syncthreads();
#pragma unroll
        for (u32 p = 0; p < DEPTH; ++p) {
            f32 u[4], v[4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) u[i] = left[p * LINE + y * 4 + i];
#pragma unroll
            for (u32 j = 0; j < 4; ++j) v[j] = right[p * LINE + x * 4 + j];
#pragma unroll
            for (u32 i = 0; i < 4; ++i)
#pragma unroll
                for (u32 j = 0; j < 4; ++j) sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i)
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            u64 to_row = row + y * 4 + i, to_column = column + x * 4 + j;
            if (to_row >= m || to_column >= n) continue;
            D *to = d + to_row * d_stride + to_column;
            f32 value = alpha * sum[i][j];
            if (accumulate) value = wide(*to) + value;
            D rounded = narrow<D>(value);
            if (bias) rounded = narrow<D>(wide(rounded) + wide(bias[to_column]));
            *to = rounded;
        }
}

KERNEL(gemm, const A *a, const B *b, D *d, const D *bias, u64 m, u64 n, u64 k, u64 a_stride, u64 b_stride, u64 d_stride,
       u32 a_transposed, u32 b_transposed, f32 alpha, u32 accumulate) {
    SHARED(f32, left, DEPTH * LINE);
    SHARED(f32, right, DEPTH * LINE);
    tile(left, right, a, b, d, bias, m, n, k, a_stride, b_stride, d_stride, a_transposed, b_transposed, alpha, accumulate);
}

// The product of expert `first` + blockIdx.z, whose rows are offsets[e]..offsets[e + 1]: of a and d (m is their number), b begins e `each`
// elements further on; or, with `summed`, of a and b (k is their number), d begins e `each` elements further on.
KERNEL(grouped, const A *a, const B *b, D *d, const u32 *offsets, u32 first, u64 each, u32 summed, u64 m, u64 n, u64 k,
       u64 a_stride, u64 b_stride, u64 d_stride, u32 a_transposed, u32 b_transposed, u32 accumulate) {
    SHARED(f32, left, DEPTH * LINE);
    SHARED(f32, right, DEPTH * LINE);
    u64 e = first + blockIdx.z, from = offsets[e], rows = offsets[e + 1] - from;
    a += from * a_stride;
    if (summed) {
        b += from * b_stride;
        d += e * each;
        k = rows;
    } else {
        if (u64(blockIdx.y) * TILE >= rows) return;
        b += e * each;
        d += from * d_stride;
        m = rows;
    }
    tile(left, right, a, b, d, static_cast<const D *>(nullptr), m, n, k, a_stride, b_stride, d_stride, a_transposed,
         b_transposed, 1.0f, accumulate);
}

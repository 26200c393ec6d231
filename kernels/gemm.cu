// d (m, n) = alpha a (m, k) b (k, n): the product where cuBLASLt is not there or does not take the formats, and products of experts,
// whose rows are known on the device only.
//
// Floor: 2 m n k operations, and each operand once for every 128 rows or columns of the other: 64 operations a byte for 16-bit formats.
// Operands of one 16-bit format are multiplied by tensor cores: a block's 128 by 128 tile is eight warps' 64 by 32, operands come in parts
// of 32 through three stages of shared memory (48 KiB) while those before are multiplied, and the result is written by rows of 64 or 128
// bytes. Other formats are multiplied as f32 by the units for f32: eight by eight sums a thread, parts of 16, the next part fetched
// meanwhile. Operands whose rows are not aligned to 16 bytes are fetched number by number. k is not divided among blocks: a product with
// fewer tiles than the device has multiprocessors leaves some idle.
//
// An element's sum is in the order of k, for f32 by single fused multiply-adds, for 16-bit formats by tensor cores' sums of 16 products;
// it depends on nothing but its row and its column, and differs from the CPU's by the order of summation alone.
//
// Compiled for: A, B, D (the formats of the operands and of the result), A_TRANSPOSED, B_TRANSPOSED (whether each is stored so).

#define TILE 128
#define STRIDES u64 a_stride, u64 b_stride, u64 d_stride

template <class X, class Y> struct Halves {
    static const bool same = false;
};
template <> struct Halves<bf16, bf16> {
    static const bool same = true;
};
template <> struct Halves<f16, f16> {
    static const bool same = true;
};

// Eight elements of a row of the result.
DEVICE void finish(D *d, const D *bias, u64 row, u32 column, u32 n, u64 d_stride, f32 alpha, u32 accumulate, const f32 (&sum)[PACK]) {
    D *to = d + row * d_stride;
    f32 value[PACK], other[PACK];
    EACH(k) value[k] = alpha * sum[k];
    if (accumulate) {
        load(to, column, n, other);
        EACH(k) value[k] = other[k] + value[k];
    }
    if (bias) {
        load(bias, column, n, other);
        EACH(k) value[k] = wide(narrow<D>(value[k])) + other[k];
    }
    store(to, column, n, value);
}

// --- by tensor cores

#define DEPTH 32
#define STAGES 3
#define STAGE (TILE * DEPTH) // numbers of an operand
#define LINE 40              // of a row of a warp's result in shared memory

// Starts to fetch the part from `from` on of 128 rows (or, of the right operand, columns) from `first` on. INNER: k lies along a stored row.
template <bool INNER, class T>
DEVICE void fetch(T *tile, const T *x, u64 stride, u32 first, u32 count, u32 from, u32 k, bool aligned) {
    const u32 CHUNKS = INNER ? DEPTH / PACK : TILE / PACK;
#pragma unroll
    for (u32 part = 0; part < STAGE / PACK / THREADS; ++part) {
        u32 item = part * THREADS + threadIdx.x, line = item / CHUNKS, chunk = item % CHUNKS;
        u32 i = first + (INNER ? line : chunk * PACK), p = from + (INNER ? chunk * PACK : line);
        u32 inside = INNER ? (i < count ? within_chunk(p, k) : 0) : (p < k ? within_chunk(i, count) : 0);
        const T *source = x + (INNER ? i * stride + p : p * stride + i);
        copy_chunk(tile + place<CHUNKS>(line, chunk), source, inside, aligned);
    }
}

// One tile of the product.
template <class T>
DEVICE void tile_of_halves(const T *a, const T *b, D *d, const D *bias, u32 m, u32 n, u32 k, STRIDES, f32 alpha, u32 accumulate) {
    SHARED(T, stages, 2 * STAGES * STAGE);
    const u32 A_CHUNKS = (A_TRANSPOSED ? TILE : DEPTH) / PACK, B_CHUNKS = (B_TRANSPOSED ? DEPTH : TILE) / PACK;
    u32 row = blockIdx.y * TILE, column = blockIdx.x * TILE, y = warp() / 4 * 64, x = warp() % 4 * 32;
    u32 steps = (k + DEPTH - 1) / DEPTH;
    bool a_aligned = a_stride % PACK == 0 && is_packed(a), b_aligned = b_stride % PACK == 0 && is_packed(b);
    f32 sum[4][4][4] = {};
    for (u32 step = 0; step < steps + STAGES - 1; ++step) {
        if (step >= STAGES - 1) { // what was fetched two steps ago is there, and what the step before read is free
            wait_copies<STAGES - 2>();
            __syncthreads();
        }
        if (step < steps) {
            T *into = stages + step % STAGES * 2 * STAGE;
            fetch<!A_TRANSPOSED>(into, a, a_stride, row, m, step * DEPTH, k, a_aligned);
            fetch<B_TRANSPOSED>(into + STAGE, b, b_stride, column, n, step * DEPTH, k, b_aligned);
        }
        close_copies();
        if (step < STAGES - 1) continue;
        const T *left = stages + (step + 1) % STAGES * 2 * STAGE, *right = left + STAGE;
#pragma unroll
        for (u32 p = 0; p < DEPTH; p += 16) {
            u32 u[4][4], v[2][4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) left_fragment<A_CHUNKS, A_TRANSPOSED>(u[i], left, y + 16 * i, p);
#pragma unroll
            for (u32 j = 0; j < 2; ++j) right_fragment<B_CHUNKS, !B_TRANSPOSED>(v[j], right, p, x + 16 * j);
#pragma unroll
            for (u32 i = 0; i < 4; ++i)
#pragma unroll
                for (u32 j = 0; j < 4; ++j) multiply_add<T>(sum[i][j], u[i], v[j / 2][j % 2 * 2], v[j / 2][j % 2 * 2 + 1]);
        }
    }
    wait_copies<0>();
    __syncthreads();
    f32 *room = reinterpret_cast<f32 *>(stages) + warp() * 16 * LINE;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j)
#pragma unroll
            for (u32 e = 0; e < 4; ++e) room[(lane() / 4 + e / 2 * 8) * LINE + j * 8 + lane() % 4 * 2 + e % 2] = sum[i][j][e];
        __syncwarp();
#pragma unroll
        for (u32 part = 0; part < 2; ++part) {
            u32 r = part * 8 + lane() / 4, c = lane() % 4 * PACK;
            f32 made[PACK];
            EACH(e) made[e] = room[r * LINE + c + e];
            if (row + y + 16 * i + r < m)
                finish(d, bias, row + y + 16 * i + r, column + x + c, n, d_stride, alpha, accumulate, made);
        }
        __syncwarp();
    }
}

// --- by the units for f32

#define PART 16
#define HALF (TILE / 2 + 16) // where the second four of eight neighbours lie: in other banks than the first
#define SPREAD (2 * HALF - 16)

DEVICE u32 spot(u32 i) { return i / 4 % 2 * HALF + i / 8 * 4 + i % 4; }

// Eight numbers of the part from `from` on: along k where INNER, of one row each thread; else of neighbouring rows.
template <bool INNER, class T>
DEVICE void take(f32 (&into)[PACK], const T *x, u64 stride, u32 first, u32 count, u32 from, u32 k) {
    u32 i = first + (INNER ? threadIdx.x % TILE : threadIdx.x % 16 * PACK);
    u32 p = from + (INNER ? threadIdx.x / TILE * PACK : threadIdx.x / 16);
    u32 line = INNER ? i : p, at = INNER ? p : i;
    if (line < (INNER ? count : k)) {
        load(x + line * stride, at, INNER ? k : count, into);
    } else {
        EACH(e) into[e] = 0.0f;
    }
}
template <bool INNER> DEVICE void put(f32 *tile, const f32 (&from)[PACK]) {
    EACH(e) {
        u32 i = INNER ? threadIdx.x % TILE : threadIdx.x % 16 * PACK + e;
        u32 p = INNER ? threadIdx.x / TILE * PACK + e : threadIdx.x / 16;
        tile[p * SPREAD + spot(i)] = from[e];
    }
}

// One tile of the product.
DEVICE void tile_of_singles(const A *a, const B *b, D *d, const D *bias, u32 m, u32 n, u32 k, STRIDES, f32 alpha, u32 accumulate) {
    SHARED(f32, parts, 4 * PART * SPREAD);
    u32 row = blockIdx.y * TILE, column = blockIdx.x * TILE, y = threadIdx.x / 16, x = threadIdx.x % 16;
    f32 sum[PACK][PACK] = {}, next_left[PACK], next_right[PACK];
    take<!A_TRANSPOSED>(next_left, a, a_stride, row, m, 0, k);
    take<B_TRANSPOSED>(next_right, b, b_stride, column, n, 0, k);
    for (u32 from = 0; from < k; from += PART) {
        f32 *left = parts + from / PART % 2 * 2 * PART * SPREAD, *right = left + PART * SPREAD;
        put<!A_TRANSPOSED>(left, next_left);
        put<B_TRANSPOSED>(right, next_right);
        __syncthreads();
        if (from + PART < k) {
            take<!A_TRANSPOSED>(next_left, a, a_stride, row, m, from + PART, k);
            take<B_TRANSPOSED>(next_right, b, b_stride, column, n, from + PART, k);
        }
#pragma unroll
        for (u32 p = 0; p < PART; ++p) {
            f32 u[PACK], v[PACK];
            EACH(e) u[e] = left[p * SPREAD + spot(y * PACK + e)];
            EACH(e) v[e] = right[p * SPREAD + spot(x * PACK + e)];
            EACH(i) EACH(j) sum[i][j] = fmaf(u[i], v[j], sum[i][j]);
        }
    }
    EACH(i) if (row + y * PACK + i < m)
        finish(d, bias, row + y * PACK + i, column + x * PACK, n, d_stride, alpha, accumulate, sum[i]);
}

template <class X, class Y>
DEVICE void tile(const X *a, const Y *b, D *d, const D *bias, u64 m, u64 n, u64 k, STRIDES, f32 alpha, u32 accumulate) {
    if constexpr (Halves<X, Y>::same)
        tile_of_halves(a, b, d, bias, m, n, k, a_stride, b_stride, d_stride, alpha, accumulate);
    else
        tile_of_singles(a, b, d, bias, m, n, k, a_stride, b_stride, d_stride, alpha, accumulate);
}

KERNEL(gemm, const A *a, const B *b, D *d, const D *bias, u64 m, u64 n, u64 k, STRIDES, f32 alpha, u32 accumulate) {
    tile(a, b, d, bias, m, n, k, a_stride, b_stride, d_stride, alpha, accumulate);
}

// The product of expert `first` + blockIdx.z, whose rows are offsets[e]..offsets[e + 1]: of a and d (m is their number), b begins e `each`
// elements further on; or, with `summed`, of a and b (k is their number), d begins e `each` elements further on.
KERNEL(grouped, const A *a, const B *b, D *d, const u32 *offsets, u32 first, u64 each, u32 summed, u64 m, u64 n, u64 k, STRIDES,
       u32 accumulate) {
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
    tile(a, b, d, static_cast<const D *>(nullptr), m, n, k, a_stride, b_stride, d_stride, 1.0f, accumulate);
}

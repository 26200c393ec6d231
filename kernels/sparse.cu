// Rows times a matrix with few non-zeros in each row, and a step between two such matrices taken.
//
// Floor: sparse_project: x read and y written once, two operations for each element of x and non-zero of its matrix row. lsp_apply: weights
// read and written once, two operations for each weight and non-zero of its row of Q. Matrices come out of the cache. Sums are in the
// order of the definition, so results have its bits.
//
// Compiled for: T (the format of x and y, or of the weight), V (of the matrices' values).

#define ROWS 32 // of x in a block, one to a lane
#define COLUMNS 512 // of y in a block
#define SPREAD 9 // words from one row of a staged tile to the next, so that lanes read different banks
#define STAGE 8 // columns of x staged at a time

// Block: 32 rows (x), 512 columns of y (y). Each warp adds what falls into its own columns, those that are its number modulo 8.
// Shared: sums (columns, rows)
KERNEL(sparse_project, const T *x, const V *values, const u16 *columns, T *y, u64 rows, u64 n, u32 width, u32 per_row) {
    DYNAMIC(f32, sums);
    SHARED(f32, staged, ROWS * SPREAD);
    u64 first = u64(blockIdx.x) * ROWS;
    u32 low = blockIdx.y * COLUMNS, high = low + COLUMNS < width ? low + COLUMNS : width;
    for (u32 at = threadIdx.x; at < COLUMNS * ROWS; at += THREADS) sums[at] = 0.0f;
    for (u64 from = 0; from < n; from += STAGE) {
        __syncthreads();
        u32 row = threadIdx.x / STAGE, i = threadIdx.x % STAGE;
        bool inside = first + row < rows && from + i < n;
        staged[row * SPREAD + i] = inside ? wide(x[(first + row) * n + from + i]) : 0.0f;
        __syncthreads();
        for (u32 i = 0; i < STAGE && from + i < n; ++i) {
            f32 mine = staged[lane() * SPREAD + i];
            for (u32 k = 0; k < per_row; ++k) {
                u64 at = (from + i) * per_row + k;
                u32 column = columns[at];
                if (column % WARPS != warp() || column < low || column >= high) continue;
                sums[(column - low) * ROWS + lane()] += wide(values[at]) * mine;
            }
        }
    }
    __syncthreads();
    for (u32 at = threadIdx.x; at < (high - low) * ROWS; at += THREADS) {
        u32 row = at / (high - low), column = at % (high - low);
        if (first + row < rows) y[(first + row) * width + low + column] = narrow<T>(sums[column * ROWS + row]);
    }
}

// w = w keep - rate (P S Qᵀ), rows_each rows of the weight a block. Shared: rows of P S (rows_each, width)
KERNEL(lsp_apply, const f32 *step, const V *p, const u16 *p_columns, const V *q, const u16 *q_columns, T *parameter, f32 *master,
       const f32 *guard, u64 m, u64 n, u32 width, u32 p_each, u32 q_each, u32 rows_each, f32 rate, f32 keep) {
    DYNAMIC(f32, left);
    if (guard && guard[1] == 0.0f) return;
    u64 first = u64(blockIdx.x) * rows_each;
    u32 count = first + rows_each < m ? rows_each : u32(m - first);
    for (u32 at = threadIdx.x; at < count * width; at += THREADS) {
        u64 row = first + at / width;
        f32 sum = 0.0f;
        for (u32 k = 0; k < p_each; ++k)
            sum += wide(p[row * p_each + k]) * step[u64(p_columns[row * p_each + k]) * width + at % width];
        left[at] = sum;
    }
    __syncthreads();
    for (u64 j = threadIdx.x; j < n; j += THREADS)
        for (u32 row = 0; row < count; ++row) {
            f32 sum = 0.0f;
            for (u32 k = 0; k < q_each; ++k)
                sum += wide(q[j * q_each + k]) * left[row * width + q_columns[j * q_each + k]];
            u64 at = (first + row) * n + j;
            f32 w = (master ? master[at] : wide(parameter[at])) * keep - rate * sum;
            if (master) master[at] = w;
            parameter[at] = narrow<T>(w);
        }
}

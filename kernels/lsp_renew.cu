// Sparse projectors looked at, drawn and fitted anew, and moments projected over.
//
// Floor: the gradient read by each look and each turn of a fit; with m by n the gradient, d the width and r the non-zeros in a row,
// 2 r (4 m n + 6 d n + 3 m d) operations a turn, and matrices of d by n written and read some three times. Here what is left out of a
// gradient, P S Qᵀ - G, is made anew for each of the r columns that read it and once for its size, r + 1 times in place of once, so that no
// matrix of the gradient's size exists. A turn is eleven launches; whether it still runs is told by a word on the device. Sums are in the
// order of the definition, which the lists of each projector's columns give, so results have its bits up to the two products of each moment.
//
// Compiled for: G (the format of the gradient), V (of the projectors' values).

// What launches tell each other.
struct State {
    f64 norm;   // of the gradient
    u32 look;   // whether projectors are there that a gradient can be held against
    u32 renew;  // whether new ones take their place
    u32 fit;    // whether they are fitted further
    f32 slope;  // 1 / (‖E‖ ‖G‖)
};
#define ONLY_IF(flag) if (*(flag) == 0) return

// Non-zeros of a sparse matrix by columns: those of column k are `items` starts[k] to starts[k + 1], as places among its values, in the order
// of rows.
#define LIST const u32 *starts, const u32 *items

// Squares of 1,024 elements a warp.
KERNEL(lsp_norm_parts, const G *gradient, f64 *sums, u64 n) {
    u64 chunks = (n + 1023) / 1024;
    for (u64 chunk = u64(blockIdx.x) * WARPS + warp(); chunk < chunks; chunk += u64(gridDim.x) * WARPS) {
        u64 end = 1024 * (chunk + 1) < n ? 1024 * (chunk + 1) : n;
        f32 sum = 0.0f;
        for (u64 i = 1024 * chunk + lane(); i < end; i += 32) sum += wide(gradient[i]) * wide(gradient[i]);
        sum = warp_sum(sum);
        if (lane() == 0) sums[chunk] = f64(sum);
    }
}

// The norm, whether there are projectors, and a copy of them: values of P, then of Q. One block.
KERNEL(lsp_begin, const f64 *sums, u64 chunks, State *state, const V *p, const u16 *p_at, const V *q, const u16 *q_at, f32 *old, u16 *old_at,
       u64 p_count, u64 count) {
    SHARED(u32, room, WARPS);
    u32 drawn = 0;
    for (u64 i = threadIdx.x; i < count; i += THREADS) {
        f32 value = i < p_count ? wide(p[i]) : wide(q[i - p_count]);
        old[i] = value;
        old_at[i] = i < p_count ? p_at[i] : q_at[i - p_count];
        drawn |= value != 0.0f;
    }
    drawn = block_sum(drawn, room);
    if (threadIdx.x > 0) return;
    f64 sum = 0.0;
    for (u64 chunk = 0; chunk < chunks; ++chunk) sum += sums[chunk];
    f64 norm = sqrt(sum);
    bool seen = norm > 0.0 && norm < INFINITE;
    state->norm = norm;
    state->look = drawn && seen;
    state->renew = drawn == 0;
    state->fit = drawn == 0 && seen;
    state->slope = 0.0f;
}

// A warp lists one column's non-zeros.
KERNEL(lsp_list, const u16 *at, u32 *starts, u32 *items, u64 count, u32 width, const u32 *flag) {
    ONLY_IF(flag);
    u32 column = blockIdx.x * WARPS + warp();
    if (column >= width) return;
    u32 first = 0;
    for (u64 from = 0; from < count; from += 32) {
        bool below = from + lane() < count && at[from + lane()] < column;
        first += __popc(__ballot_sync(~0u, below));
    }
    if (lane() == 0) {
        starts[column] = first;
        if (column + 1 == width) starts[width] = u32(count);
    }
    for (u64 from = 0; from < count; from += 32) {
        bool own = from + lane() < count && at[from + lane()] == column;
        u32 all = __ballot_sync(~0u, own), before = __popc(all & ((1u << lane()) - 1));
        if (own) items[first + before] = u32(from + lane());
        first += __popc(all);
    }
}

// Thread: column x of row y.
#define COLUMN_OF_ROW(j, k, columns)                                                                                   \
    u64 j = u64(blockIdx.x) * THREADS + threadIdx.x, k = blockIdx.y;                                                   \
    if (j >= (columns)) return

// pg = Pᵀ G (d, n)
KERNEL(lsp_project, const G *gradient, const f32 *p, LIST, f32 *pg, u64 n, u32 per_row, const u32 *flag) {
    ONLY_IF(flag);
    COLUMN_OF_ROW(j, k, n);
    f32 sum = 0.0f;
    for (u32 at = starts[k]; at < starts[k + 1]; ++at) sum += p[items[at]] * wide(gradient[items[at] / per_row * n + j]);
    pg[k * n + j] = sum;
}

// x Q (d, d) of an x (d, n)
KERNEL(lsp_narrow, const f32 *x, const f32 *q, LIST, f32 *into, u64 n, u64 width, u32 per_row, const u32 *flag) {
    ONLY_IF(flag);
    COLUMN_OF_ROW(l, k, width);
    f32 sum = 0.0f;
    for (u32 at = starts[l]; at < starts[l + 1]; ++at) sum += x[k * n + items[at] / per_row] * q[items[at]];
    into[k * width + l] = sum;
}

// sq = S Qᵀ (d, n)
KERNEL(lsp_widen, const f32 *s, const f32 *q, const u16 *q_at, f32 *sq, u64 n, u64 width, u32 per_row, const u32 *flag) {
    ONLY_IF(flag);
    COLUMN_OF_ROW(j, k, n);
    f32 sum = -0.0f;
    for (u32 t = 0; t < per_row; ++t) sum += s[k * width + q_at[j * per_row + t]] * q[j * per_row + t];
    sq[k * n + j] = sum;
}

// Element (i, j) of E = P S Qᵀ - G
DEVICE f32 left_out(const G *gradient, const f32 *p, const u16 *p_at, const f32 *sq, u64 i, u64 j, u64 n, u32 per_row) {
    f32 e = 0.0f + -1.0f * wide(gradient[i * n + j]);
    for (u32 t = 0; t < per_row; ++t) e += p[i * per_row + t] * sq[p_at[i * per_row + t] * n + j];
    return e;
}

// pe = Pᵀ E (d, n)
KERNEL(lsp_left, const G *gradient, const f32 *p, const u16 *p_at, const f32 *sq, LIST, f32 *pe, u64 n, u32 per_row, const u32 *flag) {
    ONLY_IF(flag);
    COLUMN_OF_ROW(j, k, n);
    f32 sum = 0.0f;
    for (u32 at = starts[k]; at < starts[k + 1]; ++at)
        sum += p[items[at]] * left_out(gradient, p, p_at, sq, items[at] / per_row, j, n, per_row);
    pe[k * n + j] = sum;
}

// Σ E² over a panel of 64 columns a block: a warp takes a row of it, and rows are added in their order.
KERNEL(lsp_squares, const G *gradient, const f32 *p, const u16 *p_at, const f32 *sq, f64 *sums, u64 m, u64 n, u32 per_row, const u32 *flag) {
    SHARED(f64, rows, THREADS);
    ONLY_IF(flag);
    u64 first = u64(blockIdx.x) * 64, end = first + 64 < n ? first + 64 : n;
    f64 sum = 0.0;
    for (u64 from = 0; from < m; from += THREADS) {
        u32 count = u32(from + THREADS < m ? THREADS : m - from);
        for (u32 row = warp(); row < count; row += WARPS) {
            f32 squares = 0.0f;
            for (u64 j = first + lane(); j < end; j += 32) {
                f32 e = left_out(gradient, p, p_at, sq, from + row, j, n, per_row);
                squares += e * e;
            }
            squares = warp_sum(squares);
            if (lane() == 0) rows[row] = f64(squares);
        }
        __syncthreads();
        if (threadIdx.x == 0)
            for (u32 row = 0; row < count; ++row) sum += rows[row];
        __syncthreads();
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// What share of the gradient is left out, and whether that is enough to stop: of a look at old projectors, or of the fit of new ones.
KERNEL(lsp_decide, const f64 *sums, u64 panels, State *state, f64 enough, u32 is_look) {
    if (blockIdx.x > 0 || threadIdx.x > 0) return;
    ONLY_IF(is_look ? &state->look : &state->fit);
    f64 sum = 0.0;
    for (u64 panel = 0; panel < panels; ++panel) sum += sums[panel];
    f64 size = sqrt(sum), by = size * state->norm;
    bool stops = size / state->norm <= enough;
    state->fit = !stops;
    if (is_look) state->renew = !stops;
    state->slope = f32(1.0 / (by > 2.2250738585072014e-308 ? by : 2.2250738585072014e-308));
}

// A projector: in each row a set of columns, all alike likely (Floyd's algorithm), and normal values of this deviation. Thread: a row.
KERNEL(lsp_draw, f32 *values, u16 *columns, u64 rows, u32 width, u32 per_row, u64 key, f32 deviation, const u32 *flag) {
    ONLY_IF(flag);
    for (u64 row = u64(blockIdx.x) * THREADS + threadIdx.x; row < rows; row += u64(gridDim.x) * THREADS) {
        u64 places = key_part(key, 2 * row), normals = key_part(key, 2 * row + 1);
        u16 *own = columns + row * per_row;
        for (u32 k = 0; k < per_row; ++k) {
            u32 last = width - per_row + k;
            u16 tried = u16(random_bits(places, k) % (u64(last) + 1));
            bool taken = false;
            for (u32 before = 0; before < k; ++before) taken |= own[before] == tried;
            own[k] = taken ? u16(last) : tried;
            u64 bits = random_bits(normals, k);
            f64 u = (f64(bits >> 32) + 1.0) / 4294967297.0, v = f64(bits & 0xffffffffull) / 4294967296.0;
            values[row * per_row + k] = deviation * f32(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
        }
    }
}

// Σ x y of two rows, by a warp.
DEVICE f32 row_dot(const f32 *x, const f32 *y, u64 n) {
    f32 sum = 0.0f;
    for (u64 i = lane(); i < n; i += 32) sum += x[i] * y[i];
    return warp_sum(sum);
}

// dP in row blockIdx.x. Shared: that row of G Q and of E Q = P S Qᵀ Q - G Q.
KERNEL(lsp_slope_p, const G *gradient, const f32 *p, const u16 *p_at, const f32 *q, LIST, const f32 *s, const f32 *sqq, const f32 *peq,
       f32 *slope, u64 n, u64 width, u32 per_row, const State *state) {
    DYNAMIC(f32, gq);
    ONLY_IF(&state->fit);
    f32 *eq = gq + width;
    u64 i = blockIdx.x;
    for (u64 l = threadIdx.x; l < width; l += THREADS) {
        f32 sum = 0.0f;
        for (u32 at = starts[l]; at < starts[l + 1]; ++at) sum += wide(gradient[i * n + items[at] / per_row]) * q[items[at]];
        f32 e = 0.0f + -1.0f * sum;
        for (u32 t = 0; t < per_row; ++t) e += p[i * per_row + t] * sqq[p_at[i * per_row + t] * width + l];
        gq[l] = sum;
        eq[l] = e;
    }
    __syncthreads();
    for (u32 t = warp(); t < per_row; t += WARPS) {
        u64 k = p_at[i * per_row + t];
        f32 e = row_dot(eq, s + k * width, width), g = row_dot(gq, peq + k * width, width);
        if (lane() == 0) slope[i * per_row + t] = state->slope * (e + g);
    }
}

// dQ: non-zero y of row x
KERNEL(lsp_slope_q, const u16 *q_at, const f32 *pg, const f32 *pe, const f32 *s, const f32 *peq, f32 *slope, u64 n, u64 width, u32 per_row,
       const State *state) {
    ONLY_IF(&state->fit);
    COLUMN_OF_ROW(j, t, n);
    u64 l = q_at[j * per_row + t];
    f32 sum = 0.0f;
    for (u64 k = 0; k < width; ++k)
        sum += state->slope * (pe[k * n + j] * s[k * width + l] + pg[k * n + j] * peq[k * width + l]);
    slope[j * per_row + t] = sum;
}

// A step of Adam, from moments that are zero where it is the first.
KERNEL(lsp_descend, f32 *values, const f32 *slope, f32 *m, f32 *v, u64 count, f32 pull, f32 root, f32 rate, u32 is_first, const u32 *flag) {
    ONLY_IF(flag);
    const f32 MEAN = 1.0f - 0.9f, SQUARE = 1.0f - 0.999f;
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < count; i += u64(gridDim.x) * THREADS) {
        f32 g = slope[i] + pull * values[i], mean = is_first ? 0.0f : m[i], square = is_first ? 0.0f : v[i];
        mean += MEAN * (g - mean);
        square += SQUARE * (g * g - square);
        values[i] -= rate * mean / (sqrtf(square) / root + 1e-8f);
        m[i] = mean;
        v[i] = square;
    }
}

// New projectors, rounded, in the place of the old; their values as they were rounded.
KERNEL(lsp_place, f32 *values, const u16 *columns, V *p, u16 *p_at, V *q, u16 *q_at, u64 p_count, u64 count, const u32 *flag) {
    ONLY_IF(flag);
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < count; i += u64(gridDim.x) * THREADS) {
        V value = narrow<V>(values[i]);
        values[i] = wide(value);
        if (i < p_count) {
            p[i] = value;
            p_at[i] = columns[i];
        } else {
            q[i - p_count] = value;
            q_at[i - p_count] = columns[i];
        }
    }
}

// newᵀ old (d, d) of two projectors with the same rows, or its transpose. A warp takes a column of the new one.
KERNEL(lsp_overlap, const f32 *fresh, LIST, const f32 *old, const u16 *old_at, f32 *into, u32 width, u32 per_row, u32 is_transposed,
       const u32 *flag) {
    ONLY_IF(flag);
    u32 k = blockIdx.x * WARPS + warp();
    if (k >= width) return;
    u64 across = is_transposed ? width : 1, down = is_transposed ? 1 : width;
    for (u32 l = lane(); l < width; l += 32) into[k * down + l * across] = 0.0f;
    __syncwarp();
    for (u32 at = starts[k]; at < starts[k + 1]; ++at) {
        u64 row = items[at] / per_row;
        for (u32 t = lane(); t < per_row; t += 32)
            into[k * down + old_at[row * per_row + t] * across] += fresh[items[at]] * old[row * per_row + t];
        __syncwarp(); // the next row may add to the same places
    }
}

KERNEL(lsp_square, f32 *x, f32 *y, u64 count) {
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < count; i += u64(gridDim.x) * THREADS) {
        x[i] *= x[i];
        y[i] *= y[i];
    }
}

// Moments that were projected over, where there are new projectors.
KERNEL(lsp_take, const f32 *new_m, const f32 *new_v, f32 *m, f32 *v, u64 count, const u32 *flag) {
    ONLY_IF(flag);
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < count; i += u64(gridDim.x) * THREADS) {
        m[i] = new_m[i];
        v[i] = new_v[i];
    }
}

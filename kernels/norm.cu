// LayerNorm and RMSNorm, and their derivatives.
//
// Floor: x and y once (forward), dy, x and dx once (backward), at the bandwidth of memory: a row is read again from the cache.
// Gradients of parameters read dy and x once more. Some ten operations an element.
//
// Compiled for: T (the format of x), G (the format of gradients of parameters), ROW (threads of a row: 32 or THREADS), OFFSET (what is
// added to the weight of RMSNorm).

// The rows that a block's threads take, and the elements of a row that a thread takes.
#define EACH_ROW(row, rows)                                                                                            \
    for (u64 row = u64(blockIdx.x) * (THREADS / ROW) + threadIdx.x / ROW; row < (rows);                                \
         row += u64(gridDim.x) * (THREADS / ROW))
#define EACH_COLUMN(i, c) for (u32 i = threadIdx.x % ROW * PACK; i < (c); i += ROW * PACK)

DEVICE f32 row_sum(f32 x, f32 *room) { return ROW == 32 ? warp_sum(x) : block_sum(x, room); }

KERNEL(layer_norm, const T *x, const T *w, const T *b, T *y, f32 *stats, u64 rows, u32 c, f32 eps) {
    SHARED(f32, room, WARPS);
    EACH_ROW(row, rows) {
        const T *from = x + row * c;
        T *to = y + row * c;
        f32 sum = 0.0f, squares = 0.0f;
        EACH_COLUMN(i, c) {
            f32 v[PACK];
            load(from, i, c, v);
            EACH(k) sum += v[k];
        }
        f32 mean = row_sum(sum, room) / f32(c);
        EACH_COLUMN(i, c) {
            f32 v[PACK];
            load(from, i, c, v);
            EACH(k) squares += i + k < c ? (v[k] - mean) * (v[k] - mean) : 0.0f;
        }
        f32 rstd = 1.0f / sqrtf(row_sum(squares, room) / f32(c) + eps);
        EACH_COLUMN(i, c) {
            f32 v[PACK], weight[PACK], bias[PACK];
            load(from, i, c, v);
            load(w, i, c, weight);
            load(b, i, c, bias);
            EACH(k) v[k] = (v[k] - mean) * rstd * weight[k] + bias[k];
            store(to, i, c, v);
        }
        if (threadIdx.x % ROW == 0) {
            stats[2 * row] = mean;
            stats[2 * row + 1] = rstd;
        }
    }
}

KERNEL(rms_norm, const T *x, const T *w, T *y, f32 *stats, u64 rows, u32 c, f32 eps) {
    SHARED(f32, room, WARPS);
    EACH_ROW(row, rows) {
        const T *from = x + row * c;
        T *to = y + row * c;
        f32 squares = 0.0f;
        EACH_COLUMN(i, c) {
            f32 v[PACK];
            load(from, i, c, v);
            EACH(k) squares += v[k] * v[k];
        }
        f32 rstd = 1.0f / sqrtf(row_sum(squares, room) / f32(c) + eps);
        EACH_COLUMN(i, c) {
            f32 v[PACK], weight[PACK];
            load(from, i, c, v);
            load(w, i, c, weight);
            EACH(k) v[k] = v[k] * rstd * (OFFSET + weight[k]);
            store(to, i, c, v);
        }
        if (threadIdx.x % ROW == 0) stats[row] = rstd;
    }
}

KERNEL(layer_norm_backward, const T *dy, const T *x, const T *w, const f32 *stats, T *dx, u64 rows, u32 c) {
    SHARED(f32, room, WARPS);
    EACH_ROW(row, rows) {
        f32 mean = stats[2 * row], rstd = stats[2 * row + 1], along = 0.0f, spread = 0.0f;
        EACH_COLUMN(i, c) {
            f32 g[PACK], v[PACK], weight[PACK];
            load(dy + row * c, i, c, g);
            load(x + row * c, i, c, v);
            load(w, i, c, weight);
            EACH(k) {
                f32 scaled = g[k] * weight[k];
                along += scaled;
                spread += scaled * ((v[k] - mean) * rstd);
            }
        }
        along = row_sum(along, room) / f32(c);
        spread = row_sum(spread, room) / f32(c);
        EACH_COLUMN(i, c) {
            f32 g[PACK], v[PACK], weight[PACK];
            load(dy + row * c, i, c, g);
            load(x + row * c, i, c, v);
            load(w, i, c, weight);
            EACH(k) {
                f32 normal = (v[k] - mean) * rstd;
                v[k] = rstd * (g[k] * weight[k] - along - normal * spread);
            }
            store(dx + row * c, i, c, v);
        }
    }
}

KERNEL(rms_norm_backward, const T *dy, const T *x, const T *w, const f32 *stats, T *dx, u64 rows, u32 c) {
    SHARED(f32, room, WARPS);
    EACH_ROW(row, rows) {
        f32 rstd = stats[row], spread = 0.0f;
        EACH_COLUMN(i, c) {
            f32 g[PACK], v[PACK], weight[PACK];
            load(dy + row * c, i, c, g);
            load(x + row * c, i, c, v);
            load(w, i, c, weight);
            EACH(k) spread += g[k] * (OFFSET + weight[k]) * (v[k] * rstd);
        }
        spread = row_sum(spread, room) / f32(c);
        EACH_COLUMN(i, c) {
            f32 g[PACK], v[PACK], weight[PACK];
            load(dy + row * c, i, c, g);
            load(x + row * c, i, c, v);
            load(w, i, c, weight);
            EACH(k) v[k] = rstd * (g[k] * (OFFSET + weight[k]) - v[k] * rstd * spread);
            store(dx + row * c, i, c, v);
        }
    }
}

// One part of the sums over rows behind the gradients of parameters: 32 columns of the rows of part blockIdx.y. MEANS is 1 for LayerNorm,
// whose statistics are mean and 1/deviation and which has a bias; 0 for RMSNorm. With one part, `dw` and `db` are the gradients;
// else `parts` (parts, 1 + MEANS, c) takes the sums. Rows are added in their order by each warp, and warps in theirs.
KERNEL(norm_parameters, const T *dy, const T *x, const f32 *stats, G *dw, G *db, f32 *parts, u64 rows, u32 c) {
    SHARED(f32, sums, 2 * THREADS);
    u32 column = blockIdx.x * 32 + lane();
    u64 count = (rows + gridDim.y - 1) / gridDim.y, first = count * blockIdx.y;
    u64 end = first + count < rows ? first + count : rows;
    f32 weight = 0.0f, bias = 0.0f;
    if (column < c)
#pragma unroll 4
        for (u64 row = first + warp(); row < end; row += WARPS) {
            f32 g = wide(dy[row * c + column]), v = wide(x[row * c + column]);
            f32 normal = MEANS ? (v - stats[2 * row]) * stats[2 * row + 1] : v * stats[row];
            weight += g * normal;
            bias += g;
        }
    sums[threadIdx.x] = weight;
    sums[THREADS + threadIdx.x] = bias;
    __syncthreads();
    if (warp() > 0 || column >= c) return;
    for (u32 w = 1; w < WARPS; ++w) {
        weight += sums[32 * w + lane()];
        bias += sums[THREADS + 32 * w + lane()];
    }
    if (gridDim.y == 1) {
        dw[column] = narrow<G>(weight);
        if (MEANS) db[column] = narrow<G>(bias);
    } else {
        f32 *part = parts + u64(blockIdx.y) * (1 + MEANS) * c;
        part[column] = weight;
        if (MEANS) part[c + column] = bias;
    }
}

// The sums of all parts, in their order.
KERNEL(norm_total, const f32 *parts, G *dw, G *db, u32 count, u32 c) {
    u64 width = u64(1 + MEANS) * c;
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < width; i += u64(gridDim.x) * THREADS) {
        f32 sum = parts[i];
        for (u32 part = 1; part < count; ++part) sum += parts[part * width + i];
        if (i < c)
            dw[i] = narrow<G>(sum);
        else
            db[i - c] = narrow<G>(sum);
    }
}

KERNEL(layer_norm_tangent, const T *dx, const T *dw, const T *db, const T *x, const T *w, const f32 *stats, T *dy, u64 rows,
       u32 c) {
    SHARED(f32, room, WARPS);
    EACH_ROW(row, rows) {
        f32 mean = stats[2 * row], rstd = stats[2 * row + 1], shift = 0.0f, spread = 0.0f;
        EACH_COLUMN(i, c) {
            f32 d[PACK], v[PACK];
            load(dx + row * c, i, c, d);
            load(x + row * c, i, c, v);
            EACH(k) {
                shift += d[k];
                spread += d[k] * ((v[k] - mean) * rstd);
            }
        }
        shift = row_sum(shift, room) / f32(c);
        spread = row_sum(spread, room) / f32(c);
        EACH_COLUMN(i, c) {
            f32 d[PACK], v[PACK], weight[PACK], weight_moved[PACK], bias_moved[PACK];
            load(dx + row * c, i, c, d);
            load(x + row * c, i, c, v);
            load(w, i, c, weight);
            load(dw, i, c, weight_moved);
            load(db, i, c, bias_moved);
            EACH(k) {
                f32 normal = (v[k] - mean) * rstd, moved = rstd * (d[k] - shift - normal * spread);
                v[k] = moved * weight[k] + normal * weight_moved[k] + bias_moved[k];
            }
            store(dy + row * c, i, c, v);
        }
    }
}

KERNEL(rms_norm_tangent, const T *dx, const T *dw, const T *x, const T *w, const f32 *stats, T *dy, u64 rows, u32 c) {
    SHARED(f32, room, WARPS);
    EACH_ROW(row, rows) {
        f32 rstd = stats[row], spread = 0.0f;
        EACH_COLUMN(i, c) {
            f32 d[PACK], v[PACK];
            load(dx + row * c, i, c, d);
            load(x + row * c, i, c, v);
            EACH(k) spread += d[k] * (v[k] * rstd);
        }
        spread = row_sum(spread, room) / f32(c);
        EACH_COLUMN(i, c) {
            f32 d[PACK], v[PACK], weight[PACK], weight_moved[PACK];
            load(dx + row * c, i, c, d);
            load(x + row * c, i, c, v);
            load(w, i, c, weight);
            load(dw, i, c, weight_moved);
            EACH(k) {
                f32 normal = v[k] * rstd, moved = rstd * (d[k] - normal * spread);
                v[k] = moved * (OFFSET + weight[k]) + normal * weight_moved[k];
            }
            store(dy + row * c, i, c, v);
        }
    }
}

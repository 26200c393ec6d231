// Adafactor: mean squares of rows and columns, the size of the update they give, and the update.
//
// Floor: the gradient four times (rows, columns, size, update), weights twice, at the bandwidth of memory; some 20 operations an element.
// Sums are in double precision, in a fixed order: 32 parts each of the update's size and of the weights'.
//
// Compiled for: G (the format of the gradient), P (of the parameter).

#define PARTS 32

DEVICE f32 decayed(f32 decay, f32 old, f64 made) { return decay * old + (1.0f - decay) * f32(made); }

DEVICE f32 coefficient_of(const f32 *guard) { return guard ? guard[0] : 1.0f; }
#define UNLESS_NOT_FINITE(guard) if ((guard) && (guard)[1] == 0.0f) return

// The mean square of each row.
KERNEL(adafactor_rows, const G *gradient, f32 *state, const f32 *guard, u64 rows, u32 c, f32 eps, f32 decay) {
    SHARED(f64, room, WARPS);
    UNLESS_NOT_FINITE(guard);
    f32 coefficient = coefficient_of(guard);
    for (u64 row = blockIdx.x; row < rows; row += gridDim.x) {
        f64 sum = 0.0;
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 g[PACK];
            load(gradient + row * c, i, c, g);
            EACH(k) if (i + k < c) {
                f32 x = coefficient * g[k];
                sum += f64(x * x + eps);
            }
        }
        sum = block_sum(sum, room);
        if (threadIdx.x == 0) state[row] = decayed(decay, state[row], sum / f64(c));
    }
}

// The mean square of each column, and its factor: 32 columns a block, warps take rows in turn.
KERNEL(adafactor_columns, const G *gradient, f32 *state, f32 *factors, const f32 *guard, u64 rows, u32 c, f32 eps, f32 decay) {
    SHARED(f64, sums, THREADS);
    UNLESS_NOT_FINITE(guard);
    f32 coefficient = coefficient_of(guard);
    u32 column = blockIdx.x * 32 + lane();
    f64 sum = 0.0;
    if (column < c)
#pragma unroll 4
        for (u64 row = warp(); row < rows; row += WARPS) {
            f32 x = coefficient * wide(gradient[row * c + column]);
            sum += f64(x * x + eps);
        }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp() > 0 || column >= c) return;
    for (u32 w = 1; w < WARPS; ++w) sum += sums[32 * w + lane()];
    f32 square = decayed(decay, state[column], sum / f64(rows));
    state[column] = square;
    factors[column] = 1.0f / sqrtf(square);
}

// The factor of each row, relative to the rows' mean; one block.
KERNEL(adafactor_factors, const f32 *state, f32 *factors, u64 rows) {
    SHARED(f64, room, WARPS);
    f64 sum = 0.0;
    for (u64 row = threadIdx.x; row < rows; row += THREADS) sum += f64(state[row]);
    f32 mean = f32(block_sum(sum, room) / f64(rows));
    for (u64 row = threadIdx.x; row < rows; row += THREADS) factors[row] = 1.0f / sqrtf(state[row] / mean);
}

// Part blockIdx.x of Σ (c g f)² of one matrix; set, or added where it is not the first.
KERNEL(adafactor_size, const G *gradient, const f32 *row_factors, const f32 *factors, const f32 *guard, f64 *parts, u64 rows, u32 c,
       u32 first) {
    SHARED(f64, room, WARPS);
    f32 coefficient = coefficient_of(guard);
    f64 sum = 0.0;
    for (u64 row = blockIdx.x; row < rows; row += PARTS) {
        f32 scale = coefficient * row_factors[row];
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 g[PACK], f[PACK];
            load(gradient + row * c, i, c, g);
            load(factors, i, c, f);
            EACH(k) {
                f32 update = scale * f[k] * g[k];
                sum += f64(update * update);
            }
        }
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) parts[blockIdx.x] = first ? sum : parts[blockIdx.x] + sum;
}

// Mean squares of a vector, and part blockIdx.x of the update's size.
KERNEL(adafactor_squares, const G *gradient, f32 *state, const f32 *guard, f64 *parts, u64 n, f32 eps, f32 decay) {
    SHARED(f64, room, WARPS);
    UNLESS_NOT_FINITE(guard);
    f32 coefficient = coefficient_of(guard);
    f64 sum = 0.0;
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < n; i += u64(PARTS) * THREADS) {
        f32 g = coefficient * wide(gradient[i]), square = decay * state[i] + (1.0f - decay) * (g * g + eps);
        state[i] = square;
        f32 update = g / sqrtf(square);
        sum += f64(update * update);
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Part blockIdx.x of the weights' size.
KERNEL(adafactor_weights, const P *parameter, const f32 *master, f64 *parts, u64 n) {
    SHARED(f64, room, WARPS);
    f64 sum = 0.0;
    for (u64 i = (u64(blockIdx.x) * THREADS + threadIdx.x) * PACK; i < n; i += u64(PARTS) * THREADS * PACK) {
        f32 w[PACK];
        if (master)
            load(master, i, n, w);
        else
            load(parameter, i, n, w);
        EACH(k) sum += f64(w[k]) * f64(w[k]);
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) parts[PARTS + blockIdx.x] = sum;
}

// The update. rows and c are those of a matrix of the stack; factors are null for a vector, whose squares are `square`; least is 0 where the
// rate is not scaled; mean is null where there is none
KERNEL(adafactor, const G *gradient, P *parameter, f32 *master, const f32 *square, f32 *mean, const f32 *guard, const f64 *parts,
       const f32 *row_factors, const f32 *factors, u64 n, u64 rows, u32 c, f64 wide_rate, f64 least, f64 clip, f64 decay, f32 beta1) {
    UNLESS_NOT_FINITE(guard);
    f32 coefficient = coefficient_of(guard);
    f64 sum = 0.0, weights = 0.0, rate = wide_rate;
    for (u32 part = 0; part < PARTS; ++part) sum += parts[part];
    if (least > 0.0) {
        for (u32 part = 0; part < PARTS; ++part) weights += parts[PARTS + part];
        weights = sqrt(weights / f64(n));
        rate *= weights > least ? weights : least;
    }
    f64 excess = sqrt(sum / f64(n)) / clip;
    f32 keep = f32(1.0 - rate * decay), step = f32(rate / (excess > 1.0 ? excess : 1.0));
    EACH_PACK(i, n) {
        f32 g[PACK], w[PACK], sizes[PACK], before[PACK];
        load(gradient, i, n, g);
        if (master)
            load(master, i, n, w);
        else
            load(parameter, i, n, w);
        if (factors) {
            u64 row = i / c;
            u32 column = u32(i - row * c);
            EACH(k) {
                sizes[k] = i + k < n ? row_factors[row] * factors[row / rows * c + column] : 0.0f;
                if (++column == c) {
                    column = 0;
                    ++row;
                }
            }
        } else {
            load(square, i, n, sizes);
            EACH(k) sizes[k] = 1.0f / sqrtf(sizes[k]);
        }
        EACH(k) g[k] = step * sizes[k] * (coefficient * g[k]);
        if (mean) {
            load(mean, i, n, before);
            EACH(k) g[k] = beta1 * before[k] + (1.0f - beta1) * g[k];
            store(mean, i, n, g);
        }
        EACH(k) w[k] = w[k] * keep - g[k];
        if (master) store(master, i, n, w);
        store(parameter, i, n, w);
    }
}

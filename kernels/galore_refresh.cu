// GaLore's projector anew: the Gram matrix of the gradient's smaller side or of a block of directions, its eigenvectors, the largest put in
// the old ones' places.
//
// Floor: the gradient read once, or 1 + 2 power times; with n directions sought, n² times its larger side FLOP in f64 for the Gram matrix, and
// some 25/3 n³ for eigenvectors. What is serial by nature runs in one block, on one multiprocessor, far above that: Gram and Schmidt's process
// reads every row after those before it, a reduction to a tridiagonal matrix takes n steps with two barriers each, and implicit QL follows one
// bulge. In a step of QL one thread makes the rotations and all threads turn columns by them. With 136 directions that is small; with a whole
// side of 4,096 it is expected to take tens of seconds a matrix.
//
// Compiled for: G (the format of gradient and projector).

#define SIDE 16 // of a tile of the Gram matrix, one element a thread
#define ROUNDS 30 // of QL for one eigenvalue, at most

#define UNLESS_NOT_FINITE(guard) if ((guard) && (guard)[1] == 0.0f) return

// Σ over k of x(k, i) x(k, j) in f64, element (k, i) lying at k * down + i * across. Tiles above the diagonal are those below it.
template <class T> DEVICE void gram_tile(const T *x, f64 *gram, u64 length, u64 n, u64 down, u64 across, f64 *left, f64 *right) {
    u64 i0 = u64(blockIdx.y) * SIDE, j0 = u64(blockIdx.x) * SIDE;
    if (j0 > i0) return;
    u32 i = threadIdx.x / SIDE, j = threadIdx.x % SIDE;
    f64 sum = 0.0;
    for (u64 from = 0; from < length; from += SIDE) {
        // Neighbouring threads read what lies side by side.
        u32 k = across == 1 ? i : j, side = across == 1 ? j : i;
        bool inside = from + k < length;
        left[k * SIDE + side] = inside && i0 + side < n ? f64(wide(x[(from + k) * down + (i0 + side) * across])) : 0.0;
        right[k * SIDE + side] = inside && j0 + side < n ? f64(wide(x[(from + k) * down + (j0 + side) * across])) : 0.0;
        __syncthreads();
        for (u32 at = 0; at < SIDE; ++at) sum += left[at * SIDE + i] * right[at * SIDE + j];
        __syncthreads();
    }
    if (i0 + i >= n || j0 + j >= n) return;
    gram[(i0 + i) * n + j0 + j] = sum;
    gram[(j0 + j) * n + i0 + i] = sum;
}
KERNEL(galore_gram, const G *x, f64 *gram, const f32 *guard, u64 length, u64 n, u64 down, u64 across) {
    SHARED(f64, left, SIDE * SIDE);
    SHARED(f64, right, SIDE * SIDE);
    UNLESS_NOT_FINITE(guard);
    gram_tile(x, gram, length, n, down, across, left, right);
}
KERNEL(galore_gram_along, const f32 *x, f64 *gram, const f32 *guard, u64 length, u64 n) {
    SHARED(f64, left, SIDE * SIDE);
    SHARED(f64, right, SIDE * SIDE);
    UNLESS_NOT_FINITE(guard);
    gram_tile(x, gram, length, n, n, 1, left, right);
}

// Normal numbers (Box and Muller 1958), from the two halves of one draw, as in `src/graph/random.rs`.
KERNEL(galore_draw, f32 *into, u64 count, u64 key) {
    for (u64 i = u64(blockIdx.x) * THREADS + threadIdx.x; i < count; i += u64(gridDim.x) * THREADS) {
        u64 bits = random_bits(key, i);
        f64 u = (f64(bits >> 32) + 1.0) / 4294967297.0, v = f64(bits & 0xffffffffull) / 4294967296.0;
        into[i] = f32(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
    }
}

// Rows made orthonormal by Gram and Schmidt's process, twice; a row that depends on those before becomes zero. One block. Shared: a row.
KERNEL(galore_orthonormalize, f32 *rows, const f32 *guard, u32 count, u64 width) {
    DYNAMIC(f32, row);
    SHARED(f64, room, WARPS);
    UNLESS_NOT_FINITE(guard);
    for (u32 j = 0; j < count; ++j) {
        f32 *own = rows + j * width;
        f64 squares = 0.0;
        for (u64 i = threadIdx.x; i < width; i += THREADS) {
            row[i] = own[i];
            squares += f64(row[i]) * f64(row[i]);
        }
        f64 size = sqrt(block_sum(squares, room));
        for (u32 pass = 0; pass < 2; ++pass) {
            for (u32 before = 0; before < j; ++before) {
                const f32 *other = rows + before * width;
                f64 along = 0.0;
                for (u64 i = threadIdx.x; i < width; i += THREADS) along += f64(other[i]) * f64(row[i]);
                f32 by = f32(-block_sum(along, room));
                for (u64 i = threadIdx.x; i < width; i += THREADS) row[i] += by * other[i];
            }
        }
        squares = 0.0;
        for (u64 i = threadIdx.x; i < width; i += THREADS) squares += f64(row[i]) * f64(row[i]);
        f64 left = sqrt(block_sum(squares, room));
        f32 scale = left > 1e-6 * size ? f32(1.0 / left) : 0.0f;
        for (u64 i = threadIdx.x; i < width; i += THREADS) own[i] = row[i] * scale;
    }
}

DEVICE f64 warp_dot(const f64 *x, const f64 *y, u32 n) {
    f64 sum = 0.0;
    for (u32 i = lane(); i < n; i += 32) sum += x[i] * y[i];
    return warp_sum(sum);
}

// Turns a row into the u of the reflection that leaves only its first element: the factor f, and that element. By a block.
DEVICE void reflection(f64 *u, u32 n, f64 &factor, f64 &left, f64 *room) {
    f64 rest = 0.0, first = n ? u[0] : 0.0;
    for (u32 i = 1 + threadIdx.x; i < n; i += THREADS) rest += u[i] * u[i];
    rest = block_sum(rest, room);
    factor = 0.0;
    left = first;
    if (rest == 0.0) return;
    left = -copysign(sqrt(first * first + rest), first);
    first -= left;
    factor = 2.0 / (first * first + rest);
    if (threadIdx.x == 0) u[0] = first; // all have read it: the sum is behind them
    __syncthreads();
}

// A symmetric matrix to a tridiagonal one, by reflections whose u stay right of the diagonal.
DEVICE void tridiagonal(f64 *matrix, u32 n, f64 *diagonal, f64 *beside, f64 *factors, f64 *product, f64 *room) {
    for (u32 k = 0; k < n; ++k) {
        u32 left = n - k - 1;
        f64 *u = matrix + u64(k) * n + k + 1, *below = u + n, factor, next;
        reflection(u, left, factor, next, room);
        if (threadIdx.x == 0) {
            diagonal[k] = matrix[u64(k) * n + k];
            factors[k] = factor;
            beside[k] = next;
        }
        if (factor == 0.0) continue;
        for (u32 i = warp(); i < left; i += WARPS) {
            f64 along = warp_dot(below + u64(i) * n, u, left);
            if (lane() == 0) product[i] = factor * along;
        }
        __syncthreads();
        f64 half = 0.0;
        for (u32 i = threadIdx.x; i < left; i += THREADS) half += u[i] * product[i];
        half = 0.5 * factor * block_sum(half, room);
        for (u32 i = threadIdx.x; i < left; i += THREADS) product[i] -= half * u[i];
        __syncthreads();
        for (u32 i = warp(); i < left; i += WARPS)
            for (u32 j = lane(); j < left; j += 32) below[u64(i) * n + j] -= u[i] * product[j] + product[i] * u[j];
        __syncthreads();
    }
}

// A matrix with reflections becomes the transpose of their product.
DEVICE void accumulate(f64 *matrix, u32 n, const f64 *factors) {
    for (u32 k = n; k-- > 0;) {
        u32 left = n - k - 1;
        f64 *row = matrix + u64(k) * n, *u = row + k + 1, *below = u + n, factor = factors[k];
        if (factor != 0.0)
            for (u32 i = warp(); i < left; i += WARPS) {
                f64 *own = below + u64(i) * n, along = factor * warp_dot(own, u, left);
                for (u32 j = lane(); j < left; j += 32) own[j] -= along * u[j];
            }
        __syncthreads();
        for (u32 j = threadIdx.x; j < n - k; j += THREADS) {
            row[k + j] = j ? 0.0 : 1.0;
            if (j) matrix[u64(k + j) * n + k] = 0.0;
        }
        __syncthreads();
    }
}

// One step of QL with Wilkinson's shift on rows `from` to `to`: pairs of sine and cosine for rows from..to; the lowest row that is turned.
DEVICE u32 chase(f64 *diagonal, f64 *beside, f64 *turns, u32 from, u32 to) {
    f64 slope = (diagonal[from + 1] - diagonal[from]) / (2.0 * beside[from]);
    f64 shift = beside[from] / (slope + copysign(hypot(slope, 1.0), slope));
    f64 g = diagonal[to] - diagonal[from] + shift, sine = 1.0, cosine = 1.0, p = 0.0;
    for (u32 i = to; i-- > from;) {
        f64 f = sine * beside[i], b = cosine * beside[i], r = hypot(f, g);
        beside[i + 1] = r;
        if (r == 0.0) {
            diagonal[i + 1] -= p;
            beside[to] = 0.0;
            return i + 1;
        }
        sine = f / r;
        cosine = g / r;
        g = diagonal[i + 1] - p;
        r = (diagonal[i] - g) * sine + 2.0 * cosine * b;
        p = sine * r;
        diagonal[i + 1] = g + p;
        g = cosine * r - b;
        turns[2 * i] = sine;
        turns[2 * i + 1] = cosine;
    }
    diagonal[from] -= p;
    beside[from] = g;
    beside[to] = 0.0;
    return from;
}

// What is beside the diagonal is rotated away, and columns of `vectors` along. Thread 0 looks and makes rotations; all turn.
DEVICE void rotate_away(f64 *vectors, u32 n, f64 *diagonal, f64 *beside, f64 *turns, u32 *range) {
    f64 least = 0.0;
    if (threadIdx.x == 0)
        for (u32 i = 0; i < n; ++i) {
            f64 size = fabs(diagonal[i]) + fabs(beside[i]);
            least = size > least ? size : least;
        }
    least *= 2.220446049250313e-16;
    for (u32 from = 0; from < n; ++from)
        for (u32 round = 0; round < ROUNDS; ++round) {
            if (threadIdx.x == 0) {
                u32 to = from;
                while (to + 1 < n && !(fabs(beside[to]) <= least)) ++to;
                range[0] = to;
                if (to != from) range[1] = chase(diagonal, beside, turns, from, to);
            }
            __syncthreads();
            u32 to = range[0], low = range[1];
            if (to == from) {
                __syncthreads();
                break;
            }
            for (u32 column = threadIdx.x; column < n; column += THREADS) {
                f64 *x = vectors + column, lower = x[u64(to) * n];
                for (u32 i = to; i-- > low;) {
                    f64 sine = turns[2 * i], cosine = turns[2 * i + 1], upper = x[u64(i) * n];
                    x[u64(i + 1) * n] = sine * upper + cosine * lower;
                    lower = cosine * upper - sine * lower;
                }
                x[u64(low) * n] = lower;
            }
            __syncthreads();
        }
}

// A symmetric matrix of order n becomes its eigenvectors, one a row (Golub and Van Loan, sections 8.3.1 and 8.3.3), and `work` (4 n) their
// eigenvalues and, behind them, which is the largest, the second and so on. One block.
KERNEL(galore_eigen, f64 *matrix, f64 *work, const f32 *guard, u32 n) {
    SHARED(f64, room, WARPS);
    SHARED(u32, range, 2);
    UNLESS_NOT_FINITE(guard);
    f64 *values = work, *beside = work + n, *factors = work + 2 * n, *product = work + 3 * n;
    tridiagonal(matrix, n, values, beside, factors, product, room);
    __syncthreads();
    accumulate(matrix, n, factors);
    rotate_away(matrix, n, values, beside, factors, range);
    __syncthreads();
    u32 *order = reinterpret_cast<u32 *>(beside);
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        u32 rank = 0;
        for (u32 j = 0; j < n; ++j) rank += values[j] > values[i] || (values[j] == values[i] && j < i);
        order[rank] = i;
    }
}

// Direction blockIdx.x put in the place of the old one of its number, on the old one's side. Without `found`, directions are the vectors; else
// the vectors (n) mix those `found` (n, width) into `along` (., width).
KERNEL(galore_place, const f64 *vectors, const u32 *order, const f32 *found, f32 *along, G *projector, const f32 *guard, u64 n, u64 width) {
    SHARED(f64, room, WARPS);
    UNLESS_NOT_FINITE(guard);
    const f64 *vector = vectors + order[blockIdx.x] * n;
    G *row = projector + blockIdx.x * width;
    f32 *mixed = along + blockIdx.x * width;
    f64 side = 0.0;
    for (u64 i = threadIdx.x; i < width; i += THREADS) {
        if (found) {
            f32 sum = 0.0f;
            for (u64 k = 0; k < n; ++k) sum += f32(vector[k]) * found[k * width + i];
            mixed[i] = sum;
        }
        side += f64(wide(row[i])) * (found ? f64(mixed[i]) : vector[i]);
    }
    side = block_sum(side, room); // and what is mixed is there for all
    if (side == 0.0)
        for (u64 i = 0; i < width; ++i) {
            f64 x = found ? f64(mixed[i]) : vector[i];
            side = fabs(x) > fabs(side) ? x : side;
        }
    for (u64 i = threadIdx.x; i < width; i += THREADS) {
        f64 x = found ? f64(mixed[i]) : vector[i];
        row[i] = narrow<G>(f32(x * copysign(1.0, side)));
    }
}

// The first unit vectors, where the gradient is not finite and there is no projector yet. One block.
KERNEL(galore_unit, G *projector, const f32 *guard, u64 count, u64 width) {
    SHARED(u32, room, WARPS);
    if (guard[1] != 0.0f) return;
    u32 drawn = 0;
    for (u64 i = threadIdx.x; i < count * width; i += THREADS) drawn |= wide(projector[i]) != 0.0f;
    if (block_sum(drawn, room)) return;
    for (u64 j = threadIdx.x; j < count; j += THREADS) projector[j * width + j] = narrow<G>(1.0f);
}

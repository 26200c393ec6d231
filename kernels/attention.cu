// Attention and its derivative in f32, and its tangent in all formats, tile by tile. Heads of more than 256 columns are computed here in
// all formats; the rest of 16-bit attention is in attention_mma.cu.
//
// Floor: 4 (forward) and 14 (backward) operations for each pair of a query and a key it sees and each column of a head, on the units for
// f32, fed from shared memory by two reads an operation pair, which keeps them far below their peak; q, k, v and what is made of them
// once, and the probabilities where they are kept. Tiles nobody in a block sees are left out. Backward: keys and values by one block for
// each tile of keys, queries by one for each tile of queries, each in a fixed order, so that nothing is added atomically; scores and
// gradients of probabilities are made in both (4 of the 14).
//
// Compiled for: T, SAVED, HEAD (columns of a head), TILE (queries and keys of a tile: 32, or 16 where heads are wide).

#define SPAN (THREADS / TILE) // threads of a row of a tile
#define EACH_OWN(j, n, count) _Pragma("unroll") for (u32 j = 0; j < ((count) + SPAN - 1) / SPAN; ++j) if (u32 n = threadIdx.x % SPAN + SPAN * j; n < (count))
#define OWN ((HEAD + SPAN - 1) / SPAN)
#define LAST(from) (from + TILE < seq ? from + TILE - 1 : seq - 1) // query of a tile
#define WIDE (HEAD + 1) // row of a tile in shared memory: rows start in different banks

// The sum or the greatest over the threads of a row.
DEVICE f32 span_sum(f32 x) {
#pragma unroll
    for (u32 apart = SPAN / 2; apart > 0; apart /= 2) x += __shfl_xor_sync(~0u, x, apart);
    return x;
}
DEVICE f32 span_max(f32 x) {
#pragma unroll
    for (u32 apart = SPAN / 2; apart > 0; apart /= 2) {
        f32 other = __shfl_xor_sync(~0u, x, apart);
        x = other > x ? other : x;
    }
    return x;
}

// Rows from..from + TILE, cut at `rows`, of one head of one sequence into shared memory; zeros beyond.
template <class E> DEVICE void fetch(const E *x, u64 sequence, u32 heads, u32 head, u32 from, u32 rows, f32 *tile) {
    for (u32 item = threadIdx.x; item < TILE * ((HEAD + PACK - 1) / PACK); item += THREADS) {
        u32 row = item / ((HEAD + PACK - 1) / PACK), i = item % ((HEAD + PACK - 1) / PACK) * PACK;
        f32 v[PACK] = {};
        if (from + row < rows) load(x + ((sequence * rows + from + row) * heads + head) * HEAD, i, HEAD, v);
        EACH(k) if (i + k < HEAD) tile[row * WIDE + i + k] = v[k];
    }
}

// Σ a[row] b[other] over a head's columns.
DEVICE f32 dot(const f32 *a, const f32 *b) {
    f32 sum = 0.0f;
#pragma unroll 8
    for (u32 d = 0; d < HEAD; ++d) sum = fmaf(a[d], b[d], sum);
    return sum;
}

// Block: a tile of queries (x), a head (y), a sequence (z). `left` (B heads, T) takes the logs of sums, or `probs` the probabilities.
// Shared: queries, keys or values, probabilities
KERNEL(attention_forward, const T *q, const T *k, const T *v, T *out, f32 *left, T *probs, SHAPE) {
    DYNAMIC(f32, room);
    f32 *queries = room, *others = room + TILE * WIDE, *p = others + TILE * WIDE;
    u32 row = threadIdx.x / SPAN, from = blockIdx.x * TILE, head = blockIdx.y, kv = head / (heads / kv_heads);
    u64 batch = blockIdx.z, line = (batch * heads + head) * seq + from + row;
    bool inside = from + row < seq;
    u32 low = LOW(from + row), high = HIGH(from + row), begin = LOW(from), end = HIGH(LAST(from));
    f32 peak = -INFINITE, total = 0.0f, sums[OWN] = {};
    fetch(q, batch, heads, head, from, seq, queries);
    for (u32 at = begin / TILE * TILE; at < end; at += TILE) {
        __syncthreads();
        fetch(k, batch, kv_heads, kv, at, keys, others);
        __syncthreads();
        f32 highest = -INFINITE;
        EACH_OWN(j, n, TILE) {
            f32 s = bend(dot(queries + row * WIDE, others + n * WIDE) * scale, cap);
            bool seen = at + n >= low && at + n < high;
            p[row * TILE + n] = seen ? s : -INFINITE;
            highest = seen && s > highest ? s : highest;
        }
        highest = span_max(highest);
        if (highest > peak) {
            f32 shrink = exp_f32(peak - highest);
            peak = highest;
            total *= shrink;
            EACH_OWN(j, n, HEAD) sums[j] *= shrink;
        }
        f32 added = 0.0f;
        EACH_OWN(j, n, TILE) {
            f32 s = p[row * TILE + n], e = s == -INFINITE ? 0.0f : exp_f32(s - peak);
            added += e;
            p[row * TILE + n] = e == 0.0f ? 0.0f : e * dropped(key, first, rate, line, keys, at + n);
        }
        total += span_sum(added);
        __syncthreads();
        fetch(v, batch, kv_heads, kv, at, keys, others);
        __syncthreads();
        for (u32 n = 0; n < TILE; ++n) {
            f32 weight = p[row * TILE + n];
            EACH_OWN(j, d, HEAD) sums[j] = fmaf(weight, others[n * WIDE + d], sums[j]);
        }
    }
    f32 share = 1.0f / total;
    if (inside) {
        EACH_OWN(j, d, HEAD) out[((batch * seq + from + row) * heads + head) * HEAD + d] = narrow<T>(sums[j] * share);
        if (!SAVED && threadIdx.x % SPAN == 0) left[line] = peak + logf(total);
    }
    // Scores again, now that sums are known.
    for (u32 at = 0; SAVED && at < keys; at += TILE) {
        bool any = at + TILE > begin && at < end;
        __syncthreads();
        if (any) fetch(k, batch, kv_heads, kv, at, keys, others);
        __syncthreads();
        EACH_OWN(j, n, TILE) {
            f32 e = 0.0f;
            if (any && at + n >= low && at + n < high)
                e = exp_f32(bend(dot(queries + row * WIDE, others + n * WIDE) * scale, cap) - peak) * share;
            if (inside && at + n < keys) probs[line * keys + at + n] = narrow<T>(e);
        }
    }
}

// Probabilities before dropout, gradients of scores and probabilities after dropout, of one tile: thread row `row` is a query.
// `p` and `ds` (TILE, TILE) are shared; `saved` is the lse or the probabilities of the head's rows
#define SCORES(row, from, at, delta)                                                                                   \
    EACH_OWN(j, n, TILE) {                                                                                             \
        u32 i = from + row;                                                                                            \
        u32 low = LOW(i), high = HIGH(i);                                                                              \
        bool seen = i < seq && at + n >= low && at + n < high;                                                         \
        u64 line = (batch * heads + head) * seq + i;                                                                   \
        f32 e = 0.0f, slope = 1.0f;                                                                                    \
        if (seen) {                                                                                                    \
            if (!SAVED || cap > 0.0f) {                                                                                \
                f32 s = dot(queries + row * WIDE, key_tile + n * WIDE) * scale;                                        \
                if (cap > 0.0f) {                                                                                      \
                    f32 bent = tanh_f32(s / cap);                                                                      \
                    s = cap * bent;                                                                                    \
                    slope = 1.0f - bent * bent;                                                                        \
                }                                                                                                      \
                if (!SAVED) e = exp_f32(s - lse[line]);                                                                \
            }                                                                                                          \
            if (SAVED) e = wide(probs[line * keys + at + n]);                                                          \
        }                                                                                                              \
        f32 factor = seen ? dropped(key, first, rate, line, keys, at + n) : 0.0f;                                      \
        f32 dp = seen ? dot(gradients + row * WIDE, values + n * WIDE) : 0.0f;                                         \
        p[row * TILE + n] = e * factor;                                                                                \
        ds[row * TILE + n] = seen ? e * (dp * factor - delta) * slope : 0.0f;                                          \
    }

// Deltas where probabilities are saved. Block: as `attention_forward`. Shared: gradients and values
KERNEL(attention_deltas, const T *dout, const T *v, const T *probs, T *dq, SHAPE) {
    DYNAMIC(f32, room);
    f32 *gradients = room, *values = room + TILE * WIDE;
    u32 row = threadIdx.x / SPAN, from = blockIdx.x * TILE, head = blockIdx.y, kv = head / (heads / kv_heads);
    u64 batch = blockIdx.z, line = (batch * heads + head) * seq + from + row;
    u32 low = LOW(from + row), high = HIGH(from + row), begin = LOW(from), end = HIGH(LAST(from));
    bool inside = from + row < seq;
    f32 sum = 0.0f;
    fetch(dout, batch, heads, head, from, seq, gradients);
    for (u32 at = begin / TILE * TILE; at < end; at += TILE) {
        __syncthreads();
        fetch(v, batch, kv_heads, kv, at, keys, values);
        __syncthreads();
        EACH_OWN(j, n, TILE)
        if (inside && at + n >= low && at + n < high)
            sum += wide(probs[line * keys + at + n]) * dropped(key, first, rate, line, keys, at + n) *
                   dot(gradients + row * WIDE, values + n * WIDE);
    }
    sum = span_sum(sum);
    if (inside && threadIdx.x % SPAN == 0) put_delta(place_of_delta(dq, batch, seq, heads, head, from + row), sum);
}

// Block: a tile of keys (x), a key head (y), a sequence (z). Query heads of the key head, then tiles of queries, in their order.
// Shared: queries, their gradients, keys, values, p, ds
KERNEL(attention_keys, const T *dout, const T *q, const T *k, const T *v, const f32 *lse, const T *probs, const T *dq, T *dk,
       T *dv, SHAPE) {
    DYNAMIC(f32, room);
    f32 *queries = room, *gradients = queries + TILE * WIDE, *key_tile = gradients + TILE * WIDE;
    f32 *values = key_tile + TILE * WIDE, *p = values + TILE * WIDE, *ds = p + TILE * TILE;
    u32 row = threadIdx.x / SPAN, at = blockIdx.x * TILE, kv = blockIdx.y, group = heads / kv_heads;
    u64 batch = blockIdx.z;
    f32 made_k[OWN] = {}, made_v[OWN] = {};
    fetch(k, batch, kv_heads, kv, at, keys, key_tile);
    fetch(v, batch, kv_heads, kv, at, keys, values);
    for (u32 head = kv * group; head < (kv + 1) * group; ++head)
        for (u32 from = 0; from < seq; from += TILE) {
            u32 begin = LOW(from), end = HIGH(LAST(from));
            if (at + TILE <= begin || at >= end) continue;
            __syncthreads();
            fetch(q, batch, heads, head, from, seq, queries);
            fetch(dout, batch, heads, head, from, seq, gradients);
            __syncthreads();
            f32 delta = from + row < seq ? get_delta(place_of_delta(const_cast<T *>(dq), batch, seq, heads, head, from + row)) : 0.0f;
            SCORES(row, from, at, delta)
            __syncthreads();
            for (u32 n = 0; n < TILE; ++n) {
                f32 weight = p[n * TILE + row], slope = ds[n * TILE + row];
                EACH_OWN(j, d, HEAD) {
                    made_v[j] = fmaf(weight, gradients[n * WIDE + d], made_v[j]);
                    made_k[j] = fmaf(slope, queries[n * WIDE + d], made_k[j]);
                }
            }
        }
    if (at + row >= keys) return;
    u64 start = ((batch * keys + at + row) * kv_heads + kv) * HEAD;
    EACH_OWN(j, d, HEAD) {
        dk[start + d] = narrow<T>(made_k[j] * scale);
        dv[start + d] = narrow<T>(made_v[j]);
    }
}

// Block: as `attention_forward`; reads the deltas of its rows out of dq before it writes there. Shared: as `attention_keys`
KERNEL(attention_queries, const T *dout, const T *q, const T *k, const T *v, const f32 *lse, const T *probs, T *dq, SHAPE) {
    DYNAMIC(f32, room);
    f32 *queries = room, *gradients = queries + TILE * WIDE, *key_tile = gradients + TILE * WIDE;
    f32 *values = key_tile + TILE * WIDE, *p = values + TILE * WIDE, *ds = p + TILE * TILE;
    u32 row = threadIdx.x / SPAN, from = blockIdx.x * TILE, head = blockIdx.y, kv = head / (heads / kv_heads);
    u64 batch = blockIdx.z;
    bool inside = from + row < seq;
    u32 begin = LOW(from), end = HIGH(LAST(from));
    f32 made[OWN] = {};
    f32 delta = inside ? get_delta(place_of_delta(dq, batch, seq, heads, head, from + row)) : 0.0f;
    fetch(q, batch, heads, head, from, seq, queries);
    fetch(dout, batch, heads, head, from, seq, gradients);
    for (u32 at = begin / TILE * TILE; at < end; at += TILE) {
        __syncthreads();
        fetch(k, batch, kv_heads, kv, at, keys, key_tile);
        fetch(v, batch, kv_heads, kv, at, keys, values);
        __syncthreads();
        SCORES(row, from, at, delta)
        __syncthreads();
        for (u32 n = 0; n < TILE; ++n) {
            f32 slope = ds[row * TILE + n];
            EACH_OWN(j, d, HEAD) made[j] = fmaf(slope, key_tile[n * WIDE + d], made[j]);
        }
    }
    if (!inside) return;
    EACH_OWN(j, d, HEAD) dq[((batch * seq + from + row) * heads + head) * HEAD + d] = narrow<T>(made[j] * scale);
}

// The tangent of the output: (Σ f e (dscore v + dv) - out Σ e dscore) / Σ e over the keys of each query, with e = exp(score - peak) and the
// factors f of dropout. Block: as `attention_forward`. Shared: queries, their tangents, keys or values, their tangents, f e dscore, f e
KERNEL(attention_tangent, const T *q, const T *k, const T *v, const T *out, const T *moved_q, const T *moved_k, const T *moved_v,
       T *made, SHAPE) {
    DYNAMIC(f32, room);
    f32 *queries = room, *query_tangents = queries + TILE * WIDE, *others = query_tangents + TILE * WIDE;
    f32 *tangents = others + TILE * WIDE, *moved = tangents + TILE * WIDE, *p = moved + TILE * TILE;
    u32 row = threadIdx.x / SPAN, from = blockIdx.x * TILE, head = blockIdx.y, kv = head / (heads / kv_heads);
    u64 batch = blockIdx.z, line = (batch * heads + head) * seq + from + row;
    u32 low = LOW(from + row), high = HIGH(from + row), begin = LOW(from), end = HIGH(LAST(from));
    f32 peak = -INFINITE, total = 0.0f, spread = 0.0f, sums[OWN] = {};
    fetch(q, batch, heads, head, from, seq, queries);
    fetch(moved_q, batch, heads, head, from, seq, query_tangents);
    for (u32 at = begin / TILE * TILE; at < end; at += TILE) {
        __syncthreads();
        fetch(k, batch, kv_heads, kv, at, keys, others);
        fetch(moved_k, batch, kv_heads, kv, at, keys, tangents);
        __syncthreads();
        f32 highest = -INFINITE;
        EACH_OWN(j, n, TILE) {
            f32 s = dot(queries + row * WIDE, others + n * WIDE) * scale;
            f32 t = dot(query_tangents + row * WIDE, others + n * WIDE) * scale;
            t += dot(queries + row * WIDE, tangents + n * WIDE) * scale;
            if (cap > 0.0f) {
                f32 bent = tanh_f32(s / cap);
                s = cap * bent;
                t *= 1.0f - bent * bent;
            }
            bool seen = at + n >= low && at + n < high;
            p[row * TILE + n] = seen ? s : -INFINITE;
            moved[row * TILE + n] = t;
            highest = seen && s > highest ? s : highest;
        }
        highest = span_max(highest);
        if (highest > peak) {
            f32 shrink = exp_f32(peak - highest);
            peak = highest;
            total *= shrink;
            spread *= shrink;
            EACH_OWN(j, n, HEAD) sums[j] *= shrink;
        }
        f32 added = 0.0f, spread_added = 0.0f;
        EACH_OWN(j, n, TILE) {
            f32 s = p[row * TILE + n], e = s == -INFINITE ? 0.0f : exp_f32(s - peak), t = moved[row * TILE + n];
            added += e;
            spread_added += e == 0.0f ? 0.0f : e * t;
            e = e == 0.0f ? 0.0f : e * dropped(key, first, rate, line, keys, at + n);
            p[row * TILE + n] = e;
            moved[row * TILE + n] = e == 0.0f ? 0.0f : e * t;
        }
        total += span_sum(added);
        spread += span_sum(spread_added);
        __syncthreads();
        fetch(v, batch, kv_heads, kv, at, keys, others);
        fetch(moved_v, batch, kv_heads, kv, at, keys, tangents);
        __syncthreads();
        for (u32 n = 0; n < TILE; ++n) {
            f32 a = moved[row * TILE + n], b = p[row * TILE + n];
            EACH_OWN(j, d, HEAD) sums[j] = fmaf(b, tangents[n * WIDE + d], fmaf(a, others[n * WIDE + d], sums[j]));
        }
    }
    f32 share = 1.0f / total;
    if (from + row >= seq) return;
    EACH_OWN(j, d, HEAD) {
        u64 to = ((batch * seq + from + row) * heads + head) * HEAD + d;
        made[to] = narrow<T>((sums[j] - spread * wide(out[to])) * share);
    }
}

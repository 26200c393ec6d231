// Attention and its derivative in 16-bit formats, on tensor cores, tile by tile (Dao 2023).
//
// Floor: 4 (forward) and 14 (backward) operations on tensor cores for each pair of a query and a key it sees and each column of a head
// (18 backward for heads of more than 128 columns), an exponential a pair (two backward); q, k, v and what is made of them once, and the
// probabilities where they are kept. Tiles nobody in a block sees are left out. A warp owns 16 rows; scores stay in its registers, where
// a product's result is laid out as the next one's operand. The other side comes tile by tile through shared memory while the tile before
// is multiplied. Backward: keys and values by one block for each tile of keys, queries by one for each tile of queries, each in a fixed
// order, so that nothing is added atomically; scores and gradients of probabilities are made in both (4 of the 14).
//
// Differs from the definition by the order of sums, by exponentials of the device (two units in the last place of f32), and by what tensor
// cores take: probabilities and gradients of scores are rounded to T before they are multiplied by v, dout, k and q; sums are in f32.
//
// Compiled for: T (bf16 or f16), SAVED, HEAD (columns of a head, to 256).

#define WIDTH ((HEAD + 15) / 16 * 16) // columns of a tile
#define CHUNKS (WIDTH / PACK)
#define UNITS (WIDTH / 16)
#define ROWS 128                     // queries of a block
#define KEYS (HEAD > 192 ? 32 : 64)  // of a tile
#define SPLIT (HEAD > 128 ? 2 : 1)   // backward: warps that share 16 rows, each with columns of its own
#define OWN (ROWS / SPLIT)           // backward: rows of a block,
#define OTHERS (HEAD > 128 ? 16 : 32) // and of a tile of the other side
#define PORTION ((UNITS + SPLIT - 1) / SPLIT)
#define LOG2E 1.44269504f
#undef RESIDENT
#define RESIDENT (HEAD > 64 || SAVED ? 1 : 2)
#define EACH_PAIR(n, e, count) _Pragma("unroll") for (u32 n = 0; n < (count) / 8; ++n) _Pragma("unroll") for (u32 e = 0; e < 4; ++e)
#define COLUMN(n, e) ((n) * 8 + lane() % 4 * 2 + (e) % 2) // of element e of fragment n

// As SHAPE has it.
struct Shape {
    u32 seq, keys, past, heads, kv_heads, causal, window;
    f32 scale, cap;
    u64 key, first;
    f32 rate;
};
#define ALL_OF_SHAPE {seq, keys, past, heads, kv_heads, causal, window, scale, cap, key, first, rate}

DEVICE f32 quad_sum(f32 x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}
DEVICE f32 quad_max(f32 x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

// Starts to fetch rows from..from + COUNT, cut at `rows`, of one head of one sequence; zeros beyond.
template <u32 COUNT> DEVICE void fetch(T *tile, const T *x, u64 sequence, u32 heads, u32 head, u32 from, u32 rows) {
    const T *start = x + ((sequence * rows + from) * heads + head) * HEAD;
    bool aligned = HEAD % PACK == 0 && is_packed(x);
    for (u32 item = threadIdx.x; item < COUNT * CHUNKS; item += THREADS) {
        u32 row = item / CHUNKS, i = item % CHUNKS * PACK;
        u32 inside = from + row < rows ? within_chunk(i, HEAD) : 0;
        copy_chunk(tile + place<CHUNKS>(row, i / PACK), start + u64(row * heads) * HEAD + i, inside, aligned);
    }
}

// s (16, COUNT): rows of `left` from `row` on by those of `right`.
template <u32 COUNT> DEVICE void multiply(f32 (&s)[COUNT / 8][4], const T *left, u32 row, const T *right) {
    EACH_PAIR(n, e, COUNT) s[n][e] = 0.0f;
#pragma unroll
    for (u32 u = 0; u < UNITS; ++u) {
        u32 a[4], b[4];
        left_fragment<CHUNKS, false>(a, left, row, u * 16);
#pragma unroll
        for (u32 n = 0; n < COUNT / 16; ++n) {
            right_fragment<CHUNKS, false>(b, right, u * 16, n * 16);
            multiply_add<T>(s[2 * n], a, b[0], b[1]);
            multiply_add<T>(s[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// sums (16, 16 COLUMNS) += p (16, COUNT), rounded, by rows of a tile, its columns from unit `first` on.
template <u32 COUNT, u32 COLUMNS>
DEVICE void add_product(f32 (&sums)[2 * COLUMNS][4], const f32 (&p)[COUNT / 8][4], const T *tile, u32 first) {
#pragma unroll
    for (u32 n = 0; n < COUNT / 16; ++n) {
        const f32(&left)[4] = p[2 * n], (&right)[4] = p[2 * n + 1];
        u32 a[4] = {narrow_pair<T>(left[0], left[1]), narrow_pair<T>(left[2], left[3]), narrow_pair<T>(right[0], right[1]),
                    narrow_pair<T>(right[2], right[3])};
#pragma unroll
        for (u32 u = 0; u < COLUMNS; ++u) {
            if (first + u >= UNITS) continue;
            u32 b[4];
            right_fragment<CHUNKS, true>(b, tile, n * 16, (first + u) * 16);
            multiply_add<T>(sums[2 * u], a, b[0], b[1]);
            multiply_add<T>(sums[2 * u + 1], a, b[2], b[3]);
        }
    }
}

// A warp's 16 rows of sums into rows of a tile from `row` on, columns from unit `first` on, rounded.
template <u32 COLUMNS> DEVICE void keep(T *tile, u32 row, u32 first, const f32 (&sums)[2 * COLUMNS][4], f32 upper, f32 lower) {
#pragma unroll
    for (u32 n = 0; n < 2 * COLUMNS; ++n) {
        if (first + n / 2 >= UNITS) continue;
        u32 column = first * 16 + COLUMN(n, 0);
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            T *to = tile + place<CHUNKS>(row + lane() / 4 + 8 * r, column / PACK) + column % PACK;
            f32 by = r ? lower : upper;
            *reinterpret_cast<u32 *>(to) = narrow_pair<T>(sums[n][2 * r] * by, sums[n][2 * r + 1] * by);
        }
    }
}

// A tile's rows to rows from.. of one head of one sequence.
template <u32 COUNT> DEVICE void give(const T *tile, T *x, u64 sequence, u32 heads, u32 head, u32 from, u32 rows) {
    T *start = x + ((sequence * rows + from) * heads + head) * HEAD;
    for (u32 item = threadIdx.x; item < COUNT * CHUNKS; item += THREADS) {
        u32 row = item / CHUNKS, i = item % CHUNKS * PACK;
        if (from + row >= rows || i >= HEAD) continue;
        Pack<T> pack = *reinterpret_cast<const Pack<T> *>(tile + place<CHUNKS>(row, i / PACK));
        T *to = start + u64(row * heads) * HEAD + i;
        if (i + PACK <= HEAD && is_packed(to)) {
            *reinterpret_cast<Pack<T> *>(to) = pack;
        } else {
            EACH(k) if (i + k < HEAD) to[k] = pack.at[k];
        }
    }
}

// Scores as exponents of two, in their place, -infinite where a key is not seen. `low` and `high` are of the lane's two rows.
DEVICE void exponents(f32 (&s)[KEYS / 8][4], u32 at, bool whole, const u32 (&low)[2], const u32 (&high)[2], f32 scale, f32 cap) {
    EACH_PAIR(n, e, KEYS) {
        u32 column = at + COLUMN(n, e);
        f32 x = bend(s[n][e] * scale, cap) * LOG2E;
        s[n][e] = whole || (column >= low[e / 2] && column < high[e / 2]) ? x : -INFINITE;
    }
}

// Block: a tile of queries (x), a head (y), a sequence (z). `left` (B heads, T) takes the logs of sums, or `probs` the probabilities.
// Shared: queries, keys, values
KERNEL(attention_forward, const T *q, const T *k, const T *v, T *out, f32 *left, T *probs, SHAPE) {
    DYNAMIC(T, queries);
    T *key_tile = queries + ROWS * WIDTH, *values = key_tile + KEYS * WIDTH;
    // What sees most keys begins first.
    u32 from = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, kv = head / (heads / kv_heads), own = warp() * 16;
    u32 row = from + own + lane() / 4, last = from + ROWS < seq ? from + ROWS - 1 : seq - 1;
    u64 batch = blockIdx.z, line = (batch * heads + head) * seq + row;
    u32 low[2] = {LOW(row), LOW(row + 8)}, high[2] = {HIGH(row), HIGH(row + 8)}, begin = LOW(from), end = HIGH(last);
    f32 peak[2] = {-INFINITE, -INFINITE}, base[2] = {}, total[2] = {}, sums[2 * UNITS][4] = {}, s[KEYS / 8][4];
    u32 start = begin / KEYS * KEYS;
    fetch<ROWS>(queries, q, batch, heads, head, from, seq);
    fetch<KEYS>(key_tile, k, batch, kv_heads, kv, start, keys);
    close_copies();
    for (u32 at = start; at < end; at += KEYS) {
        wait_copies<0>();
        __syncthreads(); // keys are there, the values before have been used
        fetch<KEYS>(values, v, batch, kv_heads, kv, at, keys);
        close_copies();
        multiply<KEYS>(s, queries, own, key_tile);
        wait_copies<0>();
        __syncthreads(); // values are there, keys have been used
        if (at + KEYS < end) fetch<KEYS>(key_tile, k, batch, kv_heads, kv, at + KEYS, keys);
        close_copies();
        exponents(s, at, at >= LOW(last) && at + KEYS <= HIGH(from), low, high, scale, cap);
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            f32 above = peak[r];
            EACH_PAIR(n, e, KEYS) if (e / 2 == r) above = fmaxf(above, s[n][e]);
            above = quad_max(above);
            base[r] = above == -INFINITE ? 0.0f : above;
            f32 shrink = power_of_two(peak[r] - base[r]);
            peak[r] = above;
            total[r] *= shrink;
            EACH_PAIR(n, e, WIDTH) if (e / 2 == r) sums[n][e] *= shrink;
        }
        EACH_PAIR(n, e, KEYS) {
            f32 p = power_of_two(s[n][e] - base[e / 2]);
            total[e / 2] += p;
            s[n][e] = rate == 0.0f ? p : p * dropped(key, first, rate, line + e / 2 * 8, keys, at + COLUMN(n, e));
        }
        add_product<KEYS, UNITS>(sums, s, values, 0);
    }
    f32 share[2];
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        total[r] = quad_sum(total[r]);
        share[r] = 1.0f / total[r];
        if (!SAVED && lane() % 4 == 0 && row + 8 * r < seq) left[line + 8 * r] = (base[r] + log2f(total[r])) * (1.0f / LOG2E);
    }
    // Scores again, now that sums are known.
    for (u32 at = 0; SAVED && at < keys; at += KEYS) {
        bool any = at + KEYS > begin && at < end;
        __syncthreads();
        if (any) fetch<KEYS>(key_tile, k, batch, kv_heads, kv, at, keys);
        close_copies();
        wait_copies<0>();
        __syncthreads();
        if (any) {
            multiply<KEYS>(s, queries, own, key_tile);
            exponents(s, at, false, low, high, scale, cap);
        }
#pragma unroll
        for (u32 n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (u32 r = 0; r < 2; ++r) {
                f32 p[2];
                for (u32 e = 0; e < 2; ++e) p[e] = any ? power_of_two(s[n][2 * r + e] - base[r]) * share[r] : 0.0f;
                u32 column = at + COLUMN(n, 0);
                T *to = probs + (line + r * 8) * keys + column;
                if (row + r * 8 >= seq || column >= keys) continue;
                if (keys % 2 == 0) { // then pairs are aligned
                    *reinterpret_cast<u32 *>(to) = narrow_pair<T>(p[0], p[1]);
                } else {
                    to[0] = narrow<T>(p[0]);
                    if (column + 1 < keys) to[1] = narrow<T>(p[1]);
                }
            }
    }
    __syncthreads();
    keep<UNITS>(queries, own, 0, sums, share[0], share[1]);
    __syncthreads();
    give<ROWS>(queries, out, batch, heads, head, from, seq);
}

// Deltas where probabilities are saved. Block: as `attention_forward`. Shared: gradients, values twice
KERNEL(attention_deltas, const T *dout, const T *v, const T *probs, T *dq, SHAPE) {
    DYNAMIC(T, gradients);
    T *values = gradients + ROWS * WIDTH;
    u32 from = (gridDim.x - 1 - blockIdx.x) * ROWS, head = blockIdx.y, kv = head / (heads / kv_heads), own = warp() * 16;
    u32 row = from + own + lane() / 4, last = from + ROWS < seq ? from + ROWS - 1 : seq - 1;
    u64 batch = blockIdx.z, line = (batch * heads + head) * seq + row;
    u32 low[2] = {LOW(row), LOW(row + 8)}, high[2] = {HIGH(row), HIGH(row + 8)}, start = LOW(from) / KEYS * KEYS, end = HIGH(last);
    f32 sum[2] = {}, dp[KEYS / 8][4];
    fetch<ROWS>(gradients, dout, batch, heads, head, from, seq);
    fetch<KEYS>(values, v, batch, kv_heads, kv, start, keys);
    close_copies();
    for (u32 at = start, turn = 0; at < end; at += KEYS, ++turn) {
        T *now = values + turn % 2 * KEYS * WIDTH, *next = values + (turn + 1) % 2 * KEYS * WIDTH;
        wait_copies<0>();
        __syncthreads();
        if (at + KEYS < end) fetch<KEYS>(next, v, batch, kv_heads, kv, at + KEYS, keys);
        close_copies();
        multiply<KEYS>(dp, gradients, own, now);
        EACH_PAIR(n, e, KEYS) {
            u32 i = row + e / 2 * 8, column = at + COLUMN(n, e);
            if (i < seq && column >= low[e / 2] && column < high[e / 2])
                sum[e / 2] += wide(probs[(line + e / 2 * 8) * keys + column]) *
                              dropped(key, first, rate, line + e / 2 * 8, keys, column) * dp[n][e];
        }
    }
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        sum[r] = quad_sum(sum[r]);
        if (lane() % 4 == 0 && row + 8 * r < seq) put_delta(place_of_delta(dq, batch, seq, heads, head, row + 8 * r), sum[r]);
    }
}

// What backward kernels read of each query: the log of its sum, as an exponent of two, and its delta.
struct Row {
    f32 log, delta;
};
DEVICE Row row_of(const Shape &s, u64 batch, u32 head, u32 i, const f32 *lse, const T *dq) {
    if (i >= s.seq) return {0.0f, 0.0f};
    f32 log = SAVED ? 0.0f : lse[(batch * s.heads + head) * s.seq + i] * LOG2E;
    return {log, get_delta(place_of_delta(const_cast<T *>(dq), batch, s.seq, s.heads, head, i))};
}

// From scores and gradients of probabilities, in their places: probabilities after dropout and gradients of scores, of the pair of query i and
// key `column`.
DEVICE void differentiate(f32 &score, f32 &dp, const Shape &s, u64 line, u32 column, bool seen, Row row, const T *probs) {
    f32 x = score * s.scale, slope = 1.0f;
    if (s.cap > 0.0f) {
        f32 bent = tanh_f32(x / s.cap);
        x = s.cap * bent;
        slope = 1.0f - bent * bent;
    }
    f32 p = 0.0f;
    if (seen) p = SAVED ? wide(probs[line * s.keys + column]) : power_of_two(x * LOG2E - row.log);
    f32 factor = s.rate == 0.0f || !seen ? 1.0f : dropped(s.key, s.first, s.rate, line, s.keys, column);
    score = p * factor;
    dp = p * (dp * factor - row.delta) * slope;
}

// dk and dv of a tile of keys (OF_KEYS), from all that see them, or dq of a tile of queries, from all they see. The block's own rows stay in
// shared memory, those of the other side pass through two stages.
// Shared: own k and v (q and dout), two stages of q and dout (k and v), two of the queries' rows
template <bool OF_KEYS>
DEVICE void gradients(const T *dout, const T *q, const T *k, const T *v, const f32 *lse, const T *probs, const T *dq, T *made,
                      T *made_v, const Shape &shape) {
    DYNAMIC(T, own_first);
    const u32 seq = shape.seq, keys = shape.keys, past = shape.past, causal = shape.causal, window = shape.window;
    const u32 group = shape.heads / shape.kv_heads;
    T *own_second = own_first + OWN * WIDTH, *stages = own_second + OWN * WIDTH;
    Row *rows = reinterpret_cast<Row *>(stages + 4 * OTHERS * WIDTH);
    u64 batch = blockIdx.z;
    u32 tile = OF_KEYS ? blockIdx.x : gridDim.x - 1 - blockIdx.x; // what has most to do begins first
    u32 own = tile * OWN, limit = OF_KEYS ? keys : seq, last = own + OWN < limit ? own + OWN - 1 : limit - 1;
    u32 kv = OF_KEYS ? blockIdx.y : blockIdx.y / group, member = OF_KEYS ? kv * group : blockIdx.y;
    u32 at = warp() % (OWN / 16) * 16, part = warp() / (OWN / 16) * PORTION, mine = own + at + lane() / 4;
    // What others there are: tiles of each head from `start` on, below `end`.
    u32 start, end;
    if (OF_KEYS) {
        u32 reach = past + (causal ? 0 : window - 1), beyond = last + window; // the first query not seeing `last` is beyond - past
        start = own > reach ? own - reach : 0;
        end = beyond < seq + past ? beyond - (beyond < past ? beyond : past) : seq;
    } else {
        start = LOW(own);
        end = HIGH(last);
    }
    start = start / OTHERS * OTHERS;
    u32 count = end > start ? (end - start + OTHERS - 1) / OTHERS : 0, turns = OF_KEYS ? count * group : count;
    auto fetch_others = [&](u32 turn) {
        u32 from = start + turn % count * OTHERS, head = member + turn / count;
        T *into = stages + turn % 2 * 2 * OTHERS * WIDTH;
        if (OF_KEYS) {
            fetch<OTHERS>(into, q, batch, shape.heads, head, from, seq);
            fetch<OTHERS>(into + OTHERS * WIDTH, dout, batch, shape.heads, head, from, seq);
            if (threadIdx.x < OTHERS)
                rows[turn % 2 * OTHERS + threadIdx.x] = row_of(shape, batch, head, from + threadIdx.x, lse, dq);
        } else {
            fetch<OTHERS>(into, k, batch, shape.kv_heads, kv, from, keys);
            fetch<OTHERS>(into + OTHERS * WIDTH, v, batch, shape.kv_heads, kv, from, keys);
        }
    };
    if (OF_KEYS) {
        fetch<OWN>(own_first, k, batch, shape.kv_heads, kv, own, keys);
        fetch<OWN>(own_second, v, batch, shape.kv_heads, kv, own, keys);
    } else {
        fetch<OWN>(own_first, q, batch, shape.heads, member, own, seq);
        fetch<OWN>(own_second, dout, batch, shape.heads, member, own, seq);
    }
    if (turns > 0) fetch_others(0);
    close_copies();
    Row of_lane[2];
    if (!OF_KEYS)
        for (u32 r = 0; r < 2; ++r) of_lane[r] = row_of(shape, batch, member, mine + 8 * r, lse, dq);
    f32 sums[2 * PORTION][4] = {}, sums_v[OF_KEYS ? 2 * PORTION : 2][4] = {}, s[OTHERS / 8][4] = {}, dp[OTHERS / 8][4];
    for (u32 turn = 0; turn < turns; ++turn) {
        wait_copies<0>();
        __syncthreads(); // this turn's tiles are there, those before have been used
        if (turn + 1 < turns) fetch_others(turn + 1);
        close_copies();
        const T *first = stages + turn % 2 * 2 * OTHERS * WIDTH, *second = first + OTHERS * WIDTH;
        u32 from = start + turn % count * OTHERS, head = member + turn / count;
        if (!SAVED || shape.cap > 0.0f) multiply<OTHERS>(s, own_first, at, first);
        multiply<OTHERS>(dp, own_second, at, second);
        u32 low_query = OF_KEYS ? from : own, high_query = OF_KEYS ? from + OTHERS - 1 : own + OWN - 1;
        u32 low_key = OF_KEYS ? own : from, high_key = OF_KEYS ? own + OWN - 1 : from + OTHERS - 1;
        bool whole = high_query < seq && low_key >= LOW(high_query) && high_key < HIGH(low_query);
        EACH_PAIR(n, e, OTHERS) {
            u32 mine_now = mine + e / 2 * 8, other = COLUMN(n, e);
            u32 i = OF_KEYS ? from + other : mine_now, column = OF_KEYS ? mine_now : from + other;
            bool seen = whole || (i < seq && column >= LOW(i) && column < HIGH(i));
            Row row = OF_KEYS ? rows[turn % 2 * OTHERS + other] : of_lane[e / 2];
            differentiate(s[n][e], dp[n][e], shape, (batch * shape.heads + head) * seq + i, column, seen, row, probs);
        }
        if constexpr (OF_KEYS) add_product<OTHERS, PORTION>(sums_v, s, second, part);
        add_product<OTHERS, PORTION>(sums, dp, first, part);
    }
    wait_copies<0>();
    __syncthreads();
    keep<PORTION>(own_first, at, part, sums, shape.scale, shape.scale);
    if constexpr (OF_KEYS) keep<PORTION>(own_second, at, part, sums_v, 1.0f, 1.0f);
    __syncthreads();
    give<OWN>(own_first, made, batch, OF_KEYS ? shape.kv_heads : shape.heads, OF_KEYS ? kv : member, own, limit);
    if (OF_KEYS) give<OWN>(own_second, made_v, batch, shape.kv_heads, kv, own, limit);
}

// Block: a tile of queries (x), a head (y), a sequence (z); reads the deltas of its rows out of dq before it writes there.
KERNEL(attention_queries, const T *dout, const T *q, const T *k, const T *v, const f32 *lse, const T *probs, T *dq, SHAPE) {
    gradients<false>(dout, q, k, v, lse, probs, dq, dq, nullptr, ALL_OF_SHAPE);
}

// Sums of keys and of values take most registers.
#undef RESIDENT
#define RESIDENT 1

// Block: a tile of keys (x), a key head (y), a sequence (z). Query heads of the key head, then tiles of queries, in their order.
KERNEL(attention_keys, const T *dout, const T *q, const T *k, const T *v, const f32 *lse, const T *probs, const T *dq, T *dk,
       T *dv, SHAPE) {
    gradients<true>(dout, q, k, v, lse, probs, dq, dk, dv, ALL_OF_SHAPE);
}

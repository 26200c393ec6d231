// Rows of tables: token embeddings, tables added by position, and their gradients.
//
// Floor: embedding: y written and as much of the table read. Its gradient: the whole table written and dy read once; who else has a
// token's row is searched for among all tokens, 4 n² / 2 bytes out of the cache, which at 8,192 tokens is some tenth of a millisecond.
// Position tables: x twice. No atomics: the first token of a row adds up all tokens of it, in their order.
//
// Compiled for: T (the format of y and dy), G (the format of the table).

// y[n] = scale table[ids[n]]; a token that has no row gives NaNs, and reads nothing
KERNEL(embedding, const T *table, const u32 *ids, T *y, u64 tokens, u32 c, u32 vocab, f32 scale) {
    for (u64 n = blockIdx.x; n < tokens; n += gridDim.x) {
        u32 id = ids[n];
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 v[PACK];
            EACH(k) v[k] = __uint_as_float(0x7fc00000u);
            if (id < vocab) {
                load(table + u64(id) * c, i, c, v);
                EACH(k) v[k] = v[k] * scale;
            }
            store(y + n * c, i, c, v);
        }
    }
}

// table[id] += scale Σ dy[n] over the tokens n of id, for each id that some token has; 2,048 columns a block
KERNEL(embedding_backward, const T *dy, const u32 *ids, G *table, u64 tokens, u32 c, u32 vocab, f32 scale) {
    SHARED(u32, counts, WARPS);
    SHARED(u32, found, THREADS);
    u32 i = blockIdx.y * THREADS * PACK + threadIdx.x * PACK;
    for (u64 n = blockIdx.x; n < tokens; n += gridDim.x) {
        u32 id = ids[n];
        if (id >= vocab) continue;
        // Whether an earlier token has the row: then its block adds up this token too.
        bool is_first = true;
        for (u64 from = 0; from < n && is_first; from += THREADS) {
            u64 m = from + threadIdx.x;
            u32 same = __ballot_sync(~0u, m < n && ids[m] == id);
            __syncthreads();
            if (lane() == 0) counts[warp()] = same;
            __syncthreads();
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) is_first = is_first && counts[w] == 0;
        }
        if (!is_first) continue;
        f32 sum[PACK] = {};
        for (u64 from = n; from < tokens; from += THREADS) {
            u64 m = from + threadIdx.x;
            bool mine = m < tokens && ids[m] == id;
            u32 same = __ballot_sync(~0u, mine);
            __syncthreads(); // what was found before has been added
            if (lane() == 0) counts[warp()] = __popc(same);
            __syncthreads();
            u32 before = 0, count = 0;
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) {
                before += w < warp() ? counts[w] : 0;
                count += counts[w];
            }
            if (mine) found[before + __popc(same & ((1u << lane()) - 1))] = threadIdx.x;
            __syncthreads();
            if (i < c)
                for (u32 k = 0; k < count; ++k) {
                    f32 g[PACK];
                    load(dy + (from + found[k]) * c, i, c, g);
                    EACH(e) sum[e] += g[e];
                }
        }
        if (i < c) {
            f32 row[PACK];
            load(table + u64(id) * c, i, c, row);
            EACH(k) row[k] = row[k] + scale * sum[k];
            store(table + u64(id) * c, i, c, row);
        }
    }
}

// x[n] += table[n mod seq + offset]
KERNEL(position_embedding, T *x, const T *table, u64 rows, u32 c, u64 seq, u64 offset) {
    for (u64 n = blockIdx.x; n < rows; n += gridDim.x)
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 v[PACK], row[PACK];
            load(x + n * c, i, c, v);
            load(table + (n % seq + offset) * c, i, c, row);
            EACH(k) v[k] = v[k] + row[k];
            store(x + n * c, i, c, v);
        }
}

// table[p] (+)= Σ dy[n] over the rows n of position p, in their order
KERNEL(position_embedding_backward, const T *dy, G *table, u64 rows, u32 c, u64 seq, u64 offset, u64 positions,
       u32 accumulate) {
    for (u64 p = blockIdx.x; p < positions; p += gridDim.x)
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 sum[PACK] = {}, row[PACK] = {};
            if (accumulate) load(table + p * c, i, c, row);
            if (p >= offset && p < offset + seq)
                for (u64 n = p - offset; n < rows; n += seq) {
                    f32 g[PACK];
                    load(dy + n * c, i, c, g);
                    EACH(k) sum[k] += g[k];
                }
            EACH(k) row[k] = row[k] + sum[k];
            store(table + p * c, i, c, row);
        }
}

// Which experts tokens go to, their rows sorted by expert, and back.
//
// Floor: rows read once and written once, at the bandwidth of memory; the choice reads logits once for each expert chosen, and each
// expert's block all choices twice, out of the cache. No atomics: an expert's block finds its slots in their order.
//
// Compiled for: T.

// One token a warp: its k experts by falling logit, of equal ones the lower, and their softmax. weights and chosen (N, k)
KERNEL(route_choose, const T *logits, f32 *weights, u32 *chosen, u64 tokens, u32 experts, u32 k) {
    for (u64 n = u64(blockIdx.x) * WARPS + warp(); n < tokens; n += u64(gridDim.x) * WARPS) {
        const T *row = logits + n * experts;
        f32 *w = weights + n * k, top = 0.0f, sum = 0.0f;
        for (u32 rank = 0; rank < k; ++rank) {
            // Each lane's best of those not taken, then the warp's.
            u32 best = experts;
            f32 most = 0.0f;
            for (u32 e = lane(); e < experts; e += 32) {
                f32 logit = wide(row[e]);
                bool taken = false;
                for (u32 before = 0; before < rank; ++before) taken = taken || chosen[n * k + before] == e;
                if (taken || (best < experts && !(logit > most))) continue;
                best = e;
                most = logit;
            }
#pragma unroll
            for (u32 apart = 16; apart > 0; apart /= 2) {
                u32 other = __shfl_xor_sync(~0u, best, apart);
                f32 logit = __shfl_xor_sync(~0u, most, apart);
                bool better = best == experts || (other < experts && (logit > most || (logit == most && other < best)));
                best = better ? other : best;
                most = better ? logit : most;
            }
            best = __shfl_sync(~0u, best, 0); // where a logit is no number, lanes may differ
            most = __shfl_sync(~0u, most, 0);
            if (rank == 0) top = most;
            f32 share = expf(most - top);
            sum += share;
            if (lane() == 0) {
                chosen[n * k + rank] = best;
                w[rank] = share;
            }
            __syncwarp();
        }
        for (u32 rank = lane(); rank < k; rank += 32) w[rank] /= sum;
    }
}

// One expert a block: where its slots begin, and its slots in their order.
KERNEL(route_sort, const u32 *chosen, u32 *order, u32 *offsets, u64 slots, u32 experts) {
    SHARED(u32, room, WARPS);
    SHARED(u32, counts, WARPS);
    u32 expert = blockIdx.x, lower = 0;
    for (u64 slot = threadIdx.x; slot < slots; slot += THREADS) lower += chosen[slot] < expert;
    u32 next = block_sum(lower, room);
    if (threadIdx.x == 0) {
        offsets[expert] = next;
        if (expert == 0) offsets[experts] = u32(slots);
    }
    for (u64 from = 0; from < slots; from += THREADS) {
        u64 slot = from + threadIdx.x;
        bool mine = slot < slots && chosen[slot] == expert;
        u32 same = __ballot_sync(~0u, mine);
        __syncthreads();
        if (lane() == 0) counts[warp()] = __popc(same);
        __syncthreads();
        u32 before = 0, count = 0;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) {
            before += w < warp() ? counts[w] : 0;
            count += counts[w];
        }
        if (mine) order[next + before + __popc(same & ((1u << lane()) - 1))] = u32(slot);
        next += count;
    }
}

KERNEL(route_backward, const f32 *dweights, const f32 *weights, const u32 *chosen, T *dlogits, u64 tokens, u32 experts, u32 k) {
    for (u64 n = u64(blockIdx.x) * THREADS + threadIdx.x; n < tokens; n += u64(gridDim.x) * THREADS) {
        const f32 *dw = dweights + n * k, *w = weights + n * k;
        f32 mean = 0.0f;
        for (u32 rank = 0; rank < k; ++rank) mean += dw[rank] * w[rank];
        for (u32 e = 0; e < experts; ++e) dlogits[n * experts + e] = narrow<T>(0.0f);
        for (u32 rank = 0; rank < k; ++rank)
            dlogits[n * experts + chosen[n * k + rank]] = narrow<T>(w[rank] * (dw[rank] - mean));
    }
}

KERNEL(route_tangent, const T *dlogits, const f32 *weights, const u32 *chosen, f32 *dweights, u64 tokens, u32 experts, u32 k) {
    for (u64 n = u64(blockIdx.x) * THREADS + threadIdx.x; n < tokens; n += u64(gridDim.x) * THREADS) {
        const f32 *w = weights + n * k;
        const u32 *c = chosen + n * k;
        f32 mean = 0.0f;
        for (u32 rank = 0; rank < k; ++rank) mean += wide(dlogits[n * experts + c[rank]]) * w[rank];
        for (u32 rank = 0; rank < k; ++rank)
            dweights[n * k + rank] = w[rank] * (wide(dlogits[n * experts + c[rank]]) - mean);
    }
}

// rows[r] = x[order[r] / k]
KERNEL(gather, const T *x, const u32 *order, T *rows, u64 slots, u32 c, u32 k) {
    for (u64 r = blockIdx.x; r < slots; r += gridDim.x)
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 v[PACK];
            load(x + u64(order[r] / k) * c, i, c, v);
            store(rows + r * c, i, c, v);
        }
}

// places[order[r]] = r
KERNEL(invert, const u32 *order, u32 *places, u64 slots) {
    for (u64 r = u64(blockIdx.x) * THREADS + threadIdx.x; r < slots; r += u64(gridDim.x) * THREADS) places[order[r]] = u32(r);
}

// y[n] = Σ weight rows[place] of the token's k slots, by rank; weights are 1 where null
KERNEL(combine, const T *rows, const f32 *weights, const u32 *places, T *y, u64 tokens, u32 c, u32 k) {
    for (u64 n = blockIdx.x; n < tokens; n += gridDim.x)
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 sum[PACK] = {};
            for (u32 rank = 0; rank < k; ++rank) {
                f32 v[PACK], weight = weights ? weights[n * k + rank] : 1.0f;
                load(rows + u64(places[n * k + rank]) * c, i, c, v);
                EACH(e) sum[e] += weight * v[e];
            }
            store(y + n * c, i, c, sum);
        }
}

// drows[r] = weight dy[token], dweight = dy[token] · rows[r]
KERNEL(combine_backward, const T *dy, const T *rows, const f32 *weights, const u32 *order, T *drows, f32 *dweights, u64 slots,
       u32 c, u32 k) {
    SHARED(f32, room, WARPS);
    for (u64 r = blockIdx.x; r < slots; r += gridDim.x) {
        u32 slot = order[r];
        f32 weight = weights[slot], product = 0.0f;
        for (u32 i = threadIdx.x * PACK; i < c; i += THREADS * PACK) {
            f32 g[PACK], v[PACK];
            load(dy + u64(slot / k) * c, i, c, g);
            load(rows + r * c, i, c, v);
            EACH(e) {
                product += g[e] * v[e];
                g[e] = weight * g[e];
            }
            store(drows + r * c, i, c, g);
        }
        product = block_sum(product, room);
        if (threadIdx.x == 0) dweights[slot] = product;
    }
}

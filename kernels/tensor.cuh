// Products on tensor cores: tiles of 16-bit numbers in shared memory, copies into them that run meanwhile, and a warp's fragments.
//
// A tile is rows of CHUNKS chunks, each of eight numbers (16 bytes). `place` lets the chunks of a row change places so that eight rows'
// chunks of one column lie in different banks: no fetch of a fragment and no copy meets a conflict. Everything here is one PTX instruction
// each; the emulator computes the same from what every lane brings, so that a wrong layout gives wrong numbers.

#define CHUNK_BYTES 16

// Where a chunk lies, in elements from the start of its tile.
template <u32 CHUNKS> DEVICE u32 place(u32 row, u32 chunk) {
    const u32 STEP = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : CHUNKS % 2 == 0 ? 2 : 1;
    return (row * CHUNKS + (chunk ^ (row / (8 / STEP) % STEP))) * PACK;
}

// How many of the eight numbers from `at` on lie below `end`.
DEVICE u32 within_chunk(u32 at, u32 end) { return at >= end ? 0 : end - at < PACK ? end - at : PACK; }

// Starts to copy the first `count` numbers of a chunk, with zeros behind them. They are there for the block after `wait_copies` and a
// barrier. What is not aligned to 16 bytes comes number by number, and at once.
template <class T> DEVICE void copy_chunk(T *to, const T *from, u32 count, bool aligned) {
    if (!aligned) {
        Pack<T> pack;
        EACH(k) pack.at[k].bits = k < count ? from[k].bits : 0;
        *reinterpret_cast<Pack<T> *>(to) = pack;
        return;
    }
#ifndef EMULATED
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(u32(__cvta_generic_to_shared(to))), "l"(from), "r"(count * u32(sizeof(T)))
                 : "memory");
#else
    emulator::copy_async(to, from, count * sizeof(T), CHUNK_BYTES);
#endif
}

// The copies started so far by this thread are one group.
DEVICE void close_copies() {
#ifndef EMULATED
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::close_copies();
#endif
}

// Waits for this thread's groups, but for the last LEFT.
template <u32 LEFT> DEVICE void wait_copies() {
#ifndef EMULATED
    asm volatile("cp.async.wait_group %0;" : : "n"(LEFT) : "memory");
#else
    emulator::wait_copies(LEFT);
#endif
}

// Four matrices of eight by eight numbers, whose rows' starts the lanes give, eight for each. A lane gets two neighbours of row lane / 4 of
// each, those from column lane % 4 * 2 on; of the transposed matrices with ACROSS.
template <bool ACROSS, class T> DEVICE void fetch_matrices(u32 (&into)[4], const T *row) {
#ifndef EMULATED
    u32 at = u32(__cvta_generic_to_shared(row));
    if (ACROSS)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3])
                     : "r"(at));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(into[0]), "=r"(into[1]), "=r"(into[2]), "=r"(into[3])
                     : "r"(at));
#else
    emulator::fetch_matrices(into, row, ACROSS);
#endif
}

// A left operand's 16 rows from `row` on and 16 columns from `k` on. With ACROSS the tile's rows are the operand's columns.
template <u32 CHUNKS, bool ACROSS, class T> DEVICE void left_fragment(u32 (&a)[4], const T *tile, u32 row, u32 k) {
    u32 at = ACROSS ? place<CHUNKS>(k + lane() / 16 * 8 + lane() % 8, row / PACK + lane() / 8 % 2)
                    : place<CHUNKS>(row + lane() % 16, k / PACK + lane() / 16);
    fetch_matrices<ACROSS>(a, tile + at);
}

// A right operand's 16 rows from `k` on and 16 columns from `column` on, two numbers for each eight columns. Without ACROSS the tile's rows
// are the operand's columns.
template <u32 CHUNKS, bool ACROSS, class T> DEVICE void right_fragment(u32 (&b)[4], const T *tile, u32 k, u32 column) {
    u32 at = ACROSS ? place<CHUNKS>(k + lane() / 8 % 2 * 8 + lane() % 8, column / PACK + lane() / 16)
                    : place<CHUNKS>(column + lane() / 16 * 8 + lane() % 8, k / PACK + lane() / 8 % 2);
    fetch_matrices<ACROSS>(b, tile + at);
}

// sum (16, 8) += a (16, 16) b (16, 8), in f32. A lane holds columns lane % 4 * 2 and the next of rows lane / 4 and lane / 4 + 8.
#define MMA(format)                                                                                                    \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." format "." format                                            \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                \
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
template <class T> DEVICE void multiply_add(f32 (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> DEVICE void multiply_add<bf16>(f32 (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifndef EMULATED
    MMA("bf16");
#else
    emulator::multiply_add(sum, a, b0, b1, [](u16 bits) { return wide(bf16{bits}); });
#endif
}
template <> DEVICE void multiply_add<f16>(f32 (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#ifndef EMULATED
    MMA("f16");
#else
    emulator::multiply_add(sum, a, b0, b1, [](u16 bits) { return wide(f16{bits}); });
#endif
}

// Two numbers rounded to nearest even, the first in the low half.
template <class T> DEVICE u32 narrow_pair(f32 low, f32 high);
template <> DEVICE u32 narrow_pair<bf16>(f32 low, f32 high) {
#ifndef EMULATED
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return u32(narrow<bf16>(low).bits) | u32(narrow<bf16>(high).bits) << 16;
#endif
}
template <> DEVICE u32 narrow_pair<f16>(f32 low, f32 high) {
#ifndef EMULATED
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return u32(narrow<f16>(low).bits) | u32(narrow<f16>(high).bits) << 16;
#endif
}

// 2^x by the device's own unit, within two units in the last place.
DEVICE f32 power_of_two(f32 x) {
#ifndef EMULATED
    f32 y;
    asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// A GPU of one block at a time, for CUDA C++ compiled by a C++ compiler: threads are fibers, scheduled warp by warp.
//
// A warp runs ahead to its next block barrier before another is looked at, in an order drawn from a seed; so do the lanes of a warp
// to their next exchange, and blocks follow in a drawn order. What is missing a barrier reads what is not there yet, under most
// seeds. Shared memory begins as NaNs, between guards. A barrier that some threads never reach, an exchange that some lanes
// never reach, and a write beyond shared memory are errors with a message. It says nothing about time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define EMULATED 1

struct Dim3 {
    unsigned x, y, z;
};

namespace emulator {

const unsigned LANES = 32;
const size_t STACK = 64 * 1024;
const size_t GUARD = 64;

inline float half_to_float(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023, word;
    if (exponent == 31)
        word = sign | 0x7f800000 | fraction << 13;
    else if (exponent > 0)
        word = sign | (exponent + 112) << 23 | fraction << 13;
    else {
        float small = std::ldexp(float(fraction), -24);
        return sign ? -small : small;
    }
    float value;
    memcpy(&value, &word, 4);
    return value;
}

// Rounded to nearest even.
inline uint16_t float_to_half(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    uint16_t sign = word >> 16 & 0x8000;
    float size = std::fabs(value);
    if (value != value) return sign | 0x7e00;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 6.103515625e-05f) return sign | uint16_t(std::nearbyint(std::ldexp(size, 24)));
    uint32_t rounded = (word & 0x7fffffff) - (112u << 23);
    rounded += 0xfff + (rounded >> 13 & 1);
    return sign | uint16_t(rounded >> 13);
}

// --- fibers: a stack and where it stopped

#if defined(__x86_64__)
extern "C" void emulator_switch(void **from, void *to);
asm(R"(
.text
.weak emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
struct Fiber {
    void *at = nullptr;
    void begin(char *stack, void (*entry)()) {
        void **top = reinterpret_cast<void **>(stack + STACK);
        *--top = nullptr; // where the entry would return to; also aligns its stack
        *--top = reinterpret_cast<void *>(entry);
        for (int i = 0; i < 6; ++i) *--top = nullptr;
        at = top;
    }
    static void swap(Fiber &from, Fiber &to) { emulator_switch(&from.at, to.at); }
};
#else
struct Fiber {
    ucontext_t at;
    void begin(char *stack, void (*entry)()) {
        getcontext(&at);
        at.uc_stack.ss_sp = stack;
        at.uc_stack.ss_size = STACK;
        at.uc_link = nullptr;
        makecontext(&at, entry, 0);
    }
    static void swap(Fiber &from, Fiber &to) { swapcontext(&from.at, &to.at); }
};
#endif

enum State { READY, EXCHANGE, BARRIER, DONE };

// A copy into shared memory that has started and is not there yet.
struct Copy {
    unsigned char *to;
    unsigned char bytes[16];
    unsigned group;
};

struct Thread {
    Fiber fiber;
    State state;
    Dim3 at;
    unsigned exchanges; // how many it has taken part in
    unsigned groups;    // of copies that are closed
    std::vector<Copy> copies;
};

// What a lane brings to an exchange.
struct Deposit {
    unsigned char bytes[64];
};

struct Warp {
    Deposit deposits[2][LANES]; // of this exchange and of the one before
};

// One block, and the random order of everything in it.
struct Block {
    Dim3 grid, size, at;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<char> stacks;
    Fiber scheduler;
    unsigned current = 0;
    uint64_t random = 0;
    std::string error;
    void (*body)(void **) = nullptr;
    void **arguments = nullptr;
    std::map<const void *, std::vector<unsigned char>> shared; // by the place in the text
    std::vector<unsigned char> dynamic;

    uint64_t draw() {
        random += 0x9e3779b97f4a7c15ull;
        uint64_t z = random;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }

    std::vector<unsigned> order(unsigned count) {
        std::vector<unsigned> made(count);
        for (unsigned i = 0; i < count; ++i) {
            unsigned j = draw() % (i + 1);
            made[i] = made[j];
            made[j] = i;
        }
        return made;
    }
};

inline Block *&block() {
    static thread_local Block *current = nullptr;
    return current;
}

inline Thread &thread() { return block()->threads[block()->current]; }

inline void yield(State state) {
    Block &b = *block();
    Thread &me = b.threads[b.current];
    me.state = state;
    Fiber::swap(me.fiber, b.scheduler);
}

inline void fail(const std::string &message) {
    Block &b = *block();
    if (b.error.empty()) b.error = message;
    yield(DONE); // never resumed: the scheduler stops
}

inline void run_thread() {
    block()->body(block()->arguments);
    yield(DONE);
}

// All lanes of the warp bring `size` bytes and see what all have brought.
inline const Deposit *exchange(const void *bytes, size_t size) {
    Block &b = *block();
    Thread &me = thread();
    Warp &warp = b.warps[b.current / LANES];
    Deposit *deposits = warp.deposits[me.exchanges++ % 2];
    memcpy(deposits[b.current % LANES].bytes, bytes, size);
    yield(EXCHANGE);
    return deposits;
}

// cp.async: zeros behind `count` bytes. By chance it is there at once or when it is waited for, so that both a missing wait and a copy over
// what is still read show.
inline void copy_async(void *to, const void *from, size_t count, size_t size) {
    if (reinterpret_cast<uintptr_t>(to) % size || (count && reinterpret_cast<uintptr_t>(from) % size)) return fail("a copy that is not aligned");
    Copy copy = {static_cast<unsigned char *>(to), {}, thread().groups};
    if (count) memcpy(copy.bytes, from, count);
    if (block()->draw() % 2)
        memcpy(copy.to, copy.bytes, size);
    else
        thread().copies.push_back(copy);
}
inline void close_copies() { ++thread().groups; }
inline void wait_copies(unsigned left) {
    Thread &me = thread();
    std::vector<Copy> open;
    for (const Copy &copy : me.copies)
        if (copy.group + left < me.groups)
            memcpy(copy.to, copy.bytes, sizeof copy.bytes);
        else
            open.push_back(copy);
    me.copies = open;
}

// ldmatrix.x4: lane 8 i + r brings row r of matrix i.
inline void fetch_matrices(uint32_t (&into)[4], const void *row, bool across) {
    if (reinterpret_cast<uintptr_t>(row) % 16) return fail("a matrix that is not aligned");
    const Deposit *all = exchange(row, 16);
    unsigned lane = block()->current % LANES;
    for (unsigned i = 0; i < 4; ++i) {
        uint16_t two[2];
        for (unsigned k = 0; k < 2; ++k) {
            unsigned r = across ? lane % 4 * 2 + k : lane / 4, c = across ? lane / 4 : lane % 4 * 2 + k;
            memcpy(&two[k], all[8 * i + r].bytes + 2 * c, 2);
        }
        into[i] = uint32_t(two[0]) | uint32_t(two[1]) << 16;
    }
}

// mma.m16n8k16 as PTX lays its fragments out: element (r, k) of the left operand and (k, c) of the right one are looked up where their lanes
// hold them. Sums are exact to f64; a device adds in an order of its own.
template <class W> inline void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, W wide) {
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const Deposit *all = exchange(mine, sizeof mine);
    unsigned lane = block()->current % LANES;
    auto half = [&](unsigned from, unsigned word, unsigned k) {
        uint16_t bits;
        memcpy(&bits, all[from].bytes + 4 * word + 2 * (k % 2), 2);
        return double(wide(bits));
    };
    double left[2][16], right[16][2];
    for (unsigned k = 0; k < 16; ++k)
        for (unsigned i = 0; i < 2; ++i) {
            left[i][k] = half(lane / 4 * 4 + k % 8 / 2, i + k / 8 * 2, k);
            right[k][i] = half((lane % 4 * 2 + i) * 4 + k % 8 / 2, 4 + k / 8, k);
        }
    for (unsigned i = 0; i < 4; ++i) {
        double total = sum[i];
        for (unsigned k = 0; k < 16; ++k) total += left[i / 2][k] * right[k][i % 2];
        sum[i] = float(total);
    }
}

// Runs the lanes of a warp until all stand at a block barrier or are done.
inline void run_warp(Block &b, unsigned warp) {
    unsigned first = warp * LANES, count = std::min<unsigned>(LANES, b.threads.size() - first);
    while (b.error.empty()) {
        for (unsigned lane : b.order(count)) {
            Thread &t = b.threads[first + lane];
            if (t.state != READY) continue;
            b.current = first + lane;
            Fiber::swap(b.scheduler, t.fiber);
            if (!b.error.empty()) return;
        }
        unsigned waiting = 0;
        for (unsigned lane = 0; lane < count; ++lane) waiting += b.threads[first + lane].state == EXCHANGE;
        if (waiting == 0) return;
        if (waiting < count) {
            b.error = "an exchange that " + std::to_string(count - waiting) + " lanes of a warp never reach";
            return;
        }
        for (unsigned lane = 0; lane < count; ++lane) b.threads[first + lane].state = READY;
    }
}

inline void run_block(Block &b) {
    unsigned count = b.threads.size();
    for (unsigned i = 0; i < count; ++i) {
        Thread &t = b.threads[i];
        t.at = {i % b.size.x, i / b.size.x % b.size.y, i / b.size.x / b.size.y};
        t.state = READY;
        t.exchanges = 0;
        t.groups = 0;
        t.copies.clear();
        t.fiber.begin(b.stacks.data() + i * STACK, run_thread);
    }
    b.shared.clear();
    for (;;) {
        for (unsigned warp : b.order(b.warps.size())) {
            run_warp(b, warp);
            if (!b.error.empty()) return;
        }
        unsigned waiting = 0;
        for (Thread &t : b.threads) waiting += t.state == BARRIER;
        if (waiting == 0) break;
        if (waiting < count) {
            b.error = "a barrier that " + std::to_string(count - waiting) + " threads of a block never reach";
            return;
        }
        for (Thread &t : b.threads) t.state = READY;
    }
    auto torn = [](const std::vector<unsigned char> &room) {
        for (size_t i = 0; i < GUARD; ++i)
            if (room[i] != 0xa5 || room[room.size() - 1 - i] != 0xa5) return true;
        return false;
    };
    bool bad = torn(b.dynamic);
    for (auto &room : b.shared) bad |= torn(room.second);
    if (bad) b.error = "a write beyond shared memory";
}

inline std::vector<unsigned char> poisoned(size_t bytes) {
    std::vector<unsigned char> room(bytes + 2 * GUARD, 0xff);
    memset(room.data(), 0xa5, GUARD);
    memset(room.data() + GUARD + bytes, 0xa5, GUARD);
    return room;
}

// The shared array declared at `place`: the same for all threads of a block.
inline void *shared(const void *place, size_t bytes) {
    auto &room = block()->shared[place];
    if (room.empty()) room = poisoned(bytes);
    return room.data() + GUARD;
}

inline void *dynamic() { return block()->dynamic.data() + GUARD; }

// --- kernels by name

struct Entry {
    void (*call)(void **);
};
inline std::map<std::string, Entry> &entries() {
    static std::map<std::string, Entry> all;
    return all;
}

template <auto F> struct Call;
template <class... P, void (*F)(P...)> struct Call<F> {
    template <size_t... I> static void with(void **arguments, std::index_sequence<I...>) {
        F(*reinterpret_cast<P *>(arguments[I])...);
    }
    static void call(void **arguments) { with(arguments, std::index_sequence_for<P...>()); }
    static constexpr size_t count = sizeof...(P);
};

inline bool add(const std::string &name, void (*call)(void **)) {
    entries()[name] = {call};
    return true;
}

} // namespace emulator

// VARIANT is the name of what the text is compiled for.
#define KERNEL(name, ...)                                                                                              \
    static void name(__VA_ARGS__);                                                                                     \
    static bool name##_added = emulator::add(std::string(VARIANT "/" #name), emulator::Call<name>::call);              \
    static void name(__VA_ARGS__)
#define DEVICE inline
#define SHARED(type, name, count)                                                                                      \
    static const char name##_place = 0;                                                                                \
    type *name = static_cast<type *>(emulator::shared(&name##_place, sizeof(type) * (count)))
#define DYNAMIC(type, name) type *name = static_cast<type *>(emulator::dynamic())

#define threadIdx (emulator::thread().at)
#define blockIdx (emulator::block()->at)
#define gridDim (emulator::block()->grid)
#define blockDim (emulator::block()->size)

static inline void __syncthreads() { emulator::yield(emulator::BARRIER); }
static inline void __syncwarp(unsigned = ~0u) {
    char nothing = 0;
    emulator::exchange(&nothing, 1);
}
template <class V> static V shuffle(V value, unsigned from) {
    const emulator::Deposit *all = emulator::exchange(&value, sizeof(V));
    memcpy(&value, all[from % 32].bytes, sizeof(V));
    return value;
}
#define LANE (emulator::block()->current % 32)
template <class V> static V __shfl_xor_sync(unsigned, V value, unsigned apart) { return shuffle(value, LANE ^ apart); }
template <class V> static V __shfl_sync(unsigned, V value, unsigned from) { return shuffle(value, from); }
template <class V> static V __shfl_up_sync(unsigned, V value, unsigned by) {
    unsigned me = LANE;
    return shuffle(value, me >= by ? me - by : me);
}
template <class V> static V __shfl_down_sync(unsigned, V value, unsigned by) {
    unsigned me = LANE;
    return shuffle(value, me + by < 32 ? me + by : me);
}
static inline unsigned __ballot_sync(unsigned, int yes) {
    unsigned mine = yes ? 1 : 0, bits = 0;
    const emulator::Deposit *all = emulator::exchange(&mine, sizeof(mine));
    for (unsigned lane = 0; lane < 32; ++lane) bits |= unsigned(all[lane].bytes[0]) << lane;
    return bits;
}
static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static inline int __clz(unsigned x) { return x ? __builtin_clz(x) : 32; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline unsigned atomicAdd(unsigned *at, unsigned by) {
    unsigned old = *at;
    *at += by;
    return old;
}
static inline unsigned atomicMax(unsigned *at, unsigned by) {
    unsigned old = *at;
    *at = by > old ? by : old;
    return old;
}

// Runs one launch; the answer is empty or says what went wrong.
extern "C" __attribute__((visibility("default"))) void emulator_launch(const char *name, const unsigned *grid,
                                                                       unsigned threads, unsigned shared,
                                                                       void **arguments, uint64_t seed, char *message,
                                                                       size_t room) {
    static thread_local emulator::Block block;
    auto found = emulator::entries().find(name);
    auto say = [&](const std::string &text) { snprintf(message, room, "%s", text.c_str()); };
    if (found == emulator::entries().end()) return say(std::string("no kernel ") + name);
    block.grid = {grid[0], grid[1], grid[2]};
    block.size = {threads, 1, 1};
    block.random = seed;
    block.error.clear();
    block.body = found->second.call;
    block.arguments = arguments;
    block.threads.resize(threads);
    block.warps.resize((threads + 31) / 32);
    block.stacks.resize(threads * emulator::STACK);
    emulator::block() = &block;
    for (unsigned index : block.order(grid[0] * grid[1] * grid[2])) {
        block.at = {index % grid[0], index / grid[0] % grid[1], index / grid[0] / grid[1]};
        block.dynamic = emulator::poisoned(shared);
        emulator::run_block(block);
        if (!block.error.empty()) {
            char where[96];
            snprintf(where, sizeof where, " (block %u, %u, %u)", block.at.x, block.at.y, block.at.z);
            return say(block.error + where);
        }
    }
    say("");
}

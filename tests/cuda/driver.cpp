// A double of NVIDIA's driver (libcuda.so.1) for tests: memory is the host's, streams are queues that run late in an order drawn
// from a seed, kernels run on the emulator of tests/kernels. It is our reading of the driver's interface and no GPU: it says nothing
// about time, about NVIDIA's compiler, or about what a real driver accepts.
//
// Device addresses are shifted, so that the host cannot use them by mistake; every access of a copy, and the first byte of every
// pointer a kernel gets, must lie in a live allocation; each allocation begins as NaNs and ends at a page nobody may touch.
//
// MEMFIT_DOUBLE_SEED       the order (default 0)
// MEMFIT_DOUBLE_MEMORY     bytes of the device (default 1 GiB)
// MEMFIT_DOUBLE_FAIL       launch:N, the N-th launch is refused; fault:N, the N-th kernel fails as it runs; lost:N, the device
//                          is lost when the N-th kernel is queued, by itself or in a graph; pin, nothing can be pinned; devices, there are none; graphs, nothing can be
//                          captured; capture:N, the N-th capture comes to nothing; stale, kernels in graphs keep their parameters
// MEMFIT_DOUBLE_DROP       N: of the waits of streams for events, the N-th and every eighth after it is forgotten
// MEMFIT_DOUBLE_REPORT     a file that counts are written to when the process ends
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

typedef int Result;
typedef uint64_t Address;
enum {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE = 100,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    OUT_OF_RESOURCES = 701,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901
};

static const Address SHIFT = Address(1) << 45;

struct Event {
    uint64_t record = 0; // the latest, 0 for none
};
struct Operation {
    std::function<Result()> run;
    uint64_t after = 0; // a record that must be done
    uint64_t record = 0;
};
struct Graph;
struct Stream {
    std::deque<Operation> queue;
    Graph *capture = nullptr; // what is queued goes there instead
};
struct Module {
    void *library;
    std::map<std::string, struct Function *> functions;
};
struct Function {
    Module *module;
    std::string name;
    const char *signature; // one character for each parameter: p, 4, 8
    int shared = 48 << 10;
};
// A kernel with the values of its parameters.
struct Kernel {
    Function *function;
    unsigned grid[3], threads, shared;
    std::vector<uint64_t> words;
};
// What a graph holds: a kernel, a record of an event, or something else that runs.
struct Node {
    std::function<Result()> run;
    Kernel kernel = {};
    Event *record = nullptr;
};
struct Graph {
    std::vector<Node *> nodes; // one behind the other
    bool whole = true;
};
struct Executable {
    std::map<Node *, size_t> index;
    std::vector<Node> nodes;
};
struct Piece {
    char *mapping;
    size_t mapped, bytes;
};

// A thread that kernels run on, since the emulator keeps stacks for each thread.
struct Runner {
    std::mutex lock;
    std::condition_variable changed;
    std::function<void()> task;
    bool busy = false;
    Runner() { std::thread([this] { loop(); }).detach(); }
    void loop() {
        for (;;) {
            std::unique_lock<std::mutex> held(lock);
            changed.wait(held, [this] { return busy; });
            task();
            busy = false;
            changed.notify_all();
        }
    }
    void run(std::function<void()> what) {
        std::unique_lock<std::mutex> held(lock);
        task = what;
        busy = true;
        changed.notify_all();
        changed.wait(held, [this] { return !busy; });
    }
};

struct Device {
    std::recursive_mutex lock;
    std::map<Address, Piece> memory;
    std::map<char *, size_t> pinned;
    std::vector<Stream *> streams;
    std::set<Event *> events;
    std::set<Module *> modules;
    std::set<Graph *> graphs;
    std::set<Executable *> executables;
    std::vector<bool> done{true}; // by record
    size_t used = 0, most = 0, pinned_used = 0, pinned_most = 0;
    uint64_t random = 0, launches = 0, queued = 0, ran = 0, waits = 0, captures = 0, graph_launches = 0, renewed = 0;
    int contexts = 0;
    size_t capacity = size_t(1) << 30;
    Result sticky = SUCCESS;
    std::string fail;
    uint64_t fail_at = 0, drop = 0;
    Runner *runner = nullptr;

    Device() {
        auto number = [](const char *name, uint64_t other) {
            const char *text = getenv(name);
            return text ? strtoull(text, nullptr, 10) : other;
        };
        random = number("MEMFIT_DOUBLE_SEED", 0) * 0x9e3779b97f4a7c15ull + 1;
        capacity = number("MEMFIT_DOUBLE_MEMORY", capacity);
        drop = number("MEMFIT_DOUBLE_DROP", 0);
        if (const char *text = getenv("MEMFIT_DOUBLE_FAIL")) {
            fail = text;
            size_t colon = fail.find(':');
            if (colon != std::string::npos) {
                fail_at = strtoull(fail.c_str() + colon + 1, nullptr, 10);
                fail.resize(colon);
            }
        }
    }
    uint64_t draw() {
        random += 0x9e3779b97f4a7c15ull;
        uint64_t z = random;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    // Runs one operation of a stream drawn among those that may; false where none may.
    bool step() {
        std::vector<Stream *> ready;
        for (Stream *s : streams)
            if (!s->queue.empty() && done[s->queue.front().after]) ready.push_back(s);
        if (ready.empty()) return false;
        Stream *s = ready[draw() % ready.size()];
        Operation op = std::move(s->queue.front());
        s->queue.pop_front();
        if (op.run && sticky == SUCCESS) {
            Result answer = op.run();
            if (answer != SUCCESS) sticky = answer;
        }
        if (op.record) done[op.record] = true;
        return true;
    }
    // Whole bytes of the host for an address of the device; null where they are not one live allocation's.
    char *at(Address address, size_t bytes) {
        auto found = memory.upper_bound(address);
        if (found == memory.begin()) return nullptr;
        --found;
        Address offset = address - found->first;
        if (offset + bytes > found->second.bytes) return nullptr;
        return reinterpret_cast<char *>(found->first - SHIFT) + offset;
    }
    bool is_pinned(const void *at, size_t bytes) {
        char *from = static_cast<char *>(const_cast<void *>(at));
        auto found = pinned.upper_bound(from);
        if (found == pinned.begin()) return false;
        --found;
        return from + bytes <= found->first + found->second;
    }
    Result add(Stream *s, Operation op) {
        if (sticky != SUCCESS) return sticky;
        if (s->capture) {
            s->capture->nodes.push_back(new Node{std::move(op.run)});
            return SUCCESS;
        }
        s->queue.push_back(std::move(op));
        // Under some seeds the device is quick now and then.
        while (random % 3 == 0 && draw() % 4 == 0 && step()) {}
        return SUCCESS;
    }
    // Whether the device is lost as one more kernel is queued.
    bool is_lost() {
        if (fail == "lost" && ++queued == fail_at) sticky = DEVICE_UNAVAILABLE;
        return sticky == DEVICE_UNAVAILABLE;
    }
    // What a stream that captures must not be asked for.
    Result spoiled(Stream *s) {
        s->capture->whole = false;
        return CAPTURE_UNSUPPORTED;
    }
    Result record(Stream *s, Event *event) {
        Operation op;
        op.record = done.size();
        done.push_back(false);
        event->record = op.record;
        return add(s, std::move(op));
    }
    Result drain(Stream *s) {
        if (s->capture) return spoiled(s);
        while (!s->queue.empty())
            if (!step()) {
                fprintf(stderr, "driver double: a stream waits for what nobody will do\n");
                abort();
            }
        return sticky;
    }
    void report() {
        const char *path = getenv("MEMFIT_DOUBLE_REPORT");
        FILE *file = path ? fopen(path, "w") : nullptr;
        if (!file) return;
        fprintf(file,
                "{\"device_most\": %zu, \"device_live\": %zu, \"pinned_most\": %zu, \"pinned_live\": %zu, \"streams\": %zu, "
                "\"events\": %zu, \"modules\": %zu, \"contexts\": %d, \"launches\": %llu, \"ran\": %llu, \"waits\": %llu, "
                "\"graphs\": %zu, \"graph_launches\": %llu, \"renewed\": %llu}\n",
                most, used, pinned_most, pinned_used, streams.size(), events.size(), modules.size(), contexts,
                (unsigned long long)launches, (unsigned long long)ran, (unsigned long long)waits,
                graphs.size() + executables.size(), (unsigned long long)graph_launches, (unsigned long long)renewed);
        fclose(file);
    }
};

static Device &device() {
    static Device *the = [] {
        atexit([] { device().report(); });
        return new Device;
    }();
    return *the;
}
#define API extern "C" __attribute__((visibility("default"))) Result
#define ENTER                                                                                                          \
    Device &d = device();                                                                                              \
    std::lock_guard<std::recursive_mutex> held(d.lock);                                                                \
    if (d.sticky != SUCCESS) return d.sticky;

// --- devices and contexts

API cuInit(unsigned) { return SUCCESS; }
API cuDeviceGetCount(int *count) {
    *count = device().fail == "devices" ? 0 : 1;
    return SUCCESS;
}
API cuDeviceGet(int *handle, int ordinal) {
    *handle = ordinal;
    return ordinal == 0 ? SUCCESS : NO_DEVICE;
}
API cuDeviceGetName(char *name, int room, int) {
    snprintf(name, room, "driver double (not a GPU)");
    return SUCCESS;
}
API cuDeviceGetAttribute(int *value, int attribute, int) {
    // compute capability 8.0; threads, blocks and shared memory as of that
    static const std::map<int, int> known = {{75, 8}, {76, 0}, {16, 108}, {13, 1410000}, {97, 163 << 10}};
    auto found = known.find(attribute);
    *value = found == known.end() ? 0 : found->second;
    return SUCCESS;
}
API cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = device().capacity;
    return SUCCESS;
}
API cuDevicePrimaryCtxRetain(void **context, int) {
    ENTER;
    d.contexts += 1;
    *context = &d;
    return SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(int) {
    Device &d = device();
    std::lock_guard<std::recursive_mutex> held(d.lock);
    d.contexts -= 1;
    return d.sticky;
}
static thread_local void *current = nullptr;
API cuCtxSetCurrent(void *context) {
    current = context;
    return device().sticky == DEVICE_UNAVAILABLE ? DEVICE_UNAVAILABLE : SUCCESS;
}
API cuCtxGetCurrent(void **context) {
    *context = current;
    return SUCCESS;
}
API cuCtxSynchronize() {
    ENTER;
    for (Stream *s : d.streams) d.drain(s);
    return d.sticky;
}
API cuGetErrorName(Result error, const char **text) {
    static const std::map<Result, const char *> names = {
        {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},   {DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE"},
        {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},           {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},           {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"}, {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"}, {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
        {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};
    auto found = names.find(error);
    *text = found == names.end() ? "CUDA_ERROR_UNKNOWN" : found->second;
    return SUCCESS;
}
API cuGetErrorString(Result error, const char **text) {
    static const std::map<Result, const char *> texts = {
        {OUT_OF_MEMORY, "out of memory"},          {DEVICE_UNAVAILABLE, "the device is unavailable"},
        {NO_DEVICE, "no device"},                  {INVALID_HANDLE, "invalid resource handle"},
        {NOT_FOUND, "named symbol not found"},     {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
        {OUT_OF_RESOURCES, "too many resources requested for launch"}, {INVALID_VALUE, "invalid argument"},
        {NOT_SUPPORTED, "operation not supported"}, {CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
        {CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"}};
    auto found = texts.find(error);
    *text = found == texts.end() ? "unknown error" : found->second;
    return SUCCESS;
}

// --- memory

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTER;
    *free = d.capacity - d.used;
    *total = d.capacity;
    return SUCCESS;
}
API cuMemAlloc_v2(Address *address, size_t bytes) {
    ENTER;
    if (bytes == 0) return INVALID_VALUE;
    if (d.used + bytes > d.capacity) return OUT_OF_MEMORY;
    size_t page = 4096, body = (bytes + page - 1) / page * page;
    void *mapping = mmap(nullptr, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return OUT_OF_MEMORY;
    char *start = static_cast<char *>(mapping) + (body - bytes) / 256 * 256;
    mprotect(static_cast<char *>(mapping) + body, page, PROT_NONE);
    memset(start, 0xff, bytes);
    *address = reinterpret_cast<Address>(start) + SHIFT;
    d.memory[*address] = {static_cast<char *>(mapping), body + page, bytes};
    d.used += bytes;
    d.most = d.used > d.most ? d.used : d.most;
    return SUCCESS;
}
API cuMemFree_v2(Address address) {
    Device &d = device();
    std::lock_guard<std::recursive_mutex> held(d.lock);
    auto found = d.memory.find(address);
    if (found == d.memory.end()) return INVALID_VALUE;
    for (Stream *s : d.streams)
        if (!s->queue.empty()) d.drain(s);
    munmap(found->second.mapping, found->second.mapped);
    d.used -= found->second.bytes;
    d.memory.erase(found);
    return d.sticky;
}
API cuMemHostRegister_v2(void *at, size_t bytes, unsigned) {
    ENTER;
    if (d.fail == "pin") return OUT_OF_MEMORY;
    d.pinned[static_cast<char *>(at)] = bytes;
    d.pinned_used += bytes;
    d.pinned_most = d.pinned_used > d.pinned_most ? d.pinned_used : d.pinned_most;
    return SUCCESS;
}
API cuMemHostUnregister(void *at) {
    Device &d = device();
    std::lock_guard<std::recursive_mutex> held(d.lock);
    auto found = d.pinned.find(static_cast<char *>(at));
    if (found == d.pinned.end()) return INVALID_VALUE;
    d.pinned_used -= found->second;
    d.pinned.erase(found);
    return SUCCESS;
}

// --- streams and events

API cuStreamCreate(void **stream, unsigned) {
    ENTER;
    Stream *made = new Stream;
    d.streams.push_back(made);
    *stream = made;
    return SUCCESS;
}
API cuStreamDestroy_v2(void *stream) {
    Device &d = device();
    std::lock_guard<std::recursive_mutex> held(d.lock);
    for (size_t i = 0; i < d.streams.size(); ++i)
        if (d.streams[i] == stream) {
            d.drain(d.streams[i]);
            delete d.streams[i];
            d.streams.erase(d.streams.begin() + i);
            return d.sticky;
        }
    return INVALID_HANDLE;
}
API cuStreamSynchronize(void *stream) {
    ENTER;
    return d.drain(static_cast<Stream *>(stream));
}
API cuStreamWaitEvent(void *stream, void *event, unsigned) {
    ENTER;
    if (static_cast<Stream *>(stream)->capture) return d.spoiled(static_cast<Stream *>(stream));
    uint64_t after = static_cast<Event *>(event)->record, at = ++d.waits;
    if (d.drop && at % 8 == d.drop % 8) return SUCCESS;
    Operation op;
    op.after = after;
    return d.add(static_cast<Stream *>(stream), std::move(op));
}
API cuEventCreate(void **event, unsigned) {
    ENTER;
    Event *made = new Event;
    d.events.insert(made);
    *event = made;
    return SUCCESS;
}
API cuEventDestroy_v2(void *event) {
    Device &d = device();
    std::lock_guard<std::recursive_mutex> held(d.lock);
    Event *known = static_cast<Event *>(event);
    if (!d.events.erase(known)) return INVALID_HANDLE;
    delete known;
    return d.sticky;
}
API cuEventRecord(void *event, void *stream) {
    ENTER;
    Stream *s = static_cast<Stream *>(stream);
    // An event of a capture can be waited for by nobody outside.
    return s->capture ? d.spoiled(s) : d.record(s, static_cast<Event *>(event));
}
API cuEventRecordWithFlags(void *event, void *stream, unsigned flags) {
    ENTER;
    Stream *s = static_cast<Stream *>(stream);
    if (flags == 0) return cuEventRecord(event, stream);
    if (flags != 1 || !s->capture) return INVALID_VALUE;
    s->capture->nodes.push_back(new Node{nullptr, {}, static_cast<Event *>(event)});
    return SUCCESS;
}
API cuEventSynchronize(void *event) {
    ENTER;
    uint64_t record = static_cast<Event *>(event)->record;
    while (!d.done[record])
        if (!d.step()) abort();
    return d.sticky;
}
API cuEventQuery(void *event) {
    ENTER;
    return d.done[static_cast<Event *>(event)->record] ? SUCCESS : 600;
}
API cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    ENTER;
    // Records in the order they were queued, a microsecond each: an order and no time.
    double apart = double(static_cast<Event *>(to)->record) - double(static_cast<Event *>(from)->record);
    *milliseconds = float(apart * 1e-3);
    return SUCCESS;
}

// --- copies

API cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    ENTER;
    char *target = d.at(to, bytes);
    if (!target) return INVALID_VALUE;
    Operation op;
    if (d.is_pinned(from, bytes))
        op.run = [=] { return memcpy(target, from, bytes), SUCCESS; };
    else if (static_cast<Stream *>(stream)->capture)
        return d.spoiled(static_cast<Stream *>(stream));
    else { // pageable memory is staged before the call returns
        std::string staged(static_cast<const char *>(from), bytes);
        op.run = [=] { return memcpy(target, staged.data(), bytes), SUCCESS; };
    }
    return d.add(static_cast<Stream *>(stream), std::move(op));
}
API cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    ENTER;
    char *source = d.at(from, bytes);
    if (!source) return INVALID_VALUE;
    Operation op;
    op.run = [=] { return memcpy(to, source, bytes), SUCCESS; };
    if (static_cast<Stream *>(stream)->capture && !d.is_pinned(to, bytes)) return d.spoiled(static_cast<Stream *>(stream));
    Result added = d.add(static_cast<Stream *>(stream), std::move(op));
    // To pageable memory the call returns when the copy is done.
    return added == SUCCESS && !d.is_pinned(to, bytes) ? d.drain(static_cast<Stream *>(stream)) : added;
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    ENTER;
    char *target = d.at(to, bytes), *source = d.at(from, bytes);
    if (!target || !source) return INVALID_VALUE;
    Operation op;
    op.run = [=] { return memmove(target, source, bytes), SUCCESS; };
    return d.add(static_cast<Stream *>(stream), std::move(op));
}
API cuMemsetD8Async(Address to, unsigned char value, size_t bytes, void *stream) {
    ENTER;
    char *target = d.at(to, bytes);
    if (!target) return INVALID_VALUE;
    Operation op;
    op.run = [=] { return memset(target, value, bytes), SUCCESS; };
    return d.add(static_cast<Stream *>(stream), std::move(op));
}

// --- kernels: an image is the path of a library that the double of NVRTC compiled

API cuModuleLoadData(void **module, const void *image) {
    ENTER;
    const char *text = static_cast<const char *>(image), *mark = "driver double: ";
    if (strncmp(text, mark, strlen(mark))) return 200;
    void *library = dlopen(text + strlen(mark), RTLD_NOW | RTLD_LOCAL);
    if (!library) return fprintf(stderr, "driver double: %s\n", dlerror()), 200;
    Module *made = new Module{library, {}};
    d.modules.insert(made);
    *module = made;
    return SUCCESS;
}
API cuModuleUnload(void *module) {
    Device &d = device();
    std::lock_guard<std::recursive_mutex> held(d.lock);
    if (!d.modules.erase(static_cast<Module *>(module))) return INVALID_HANDLE;
    return d.sticky;
}
API cuModuleGetFunction(void **function, void *module, const char *name) {
    ENTER;
    Module *in = static_cast<Module *>(module);
    auto signature = reinterpret_cast<const char *(*)(const char *)>(dlsym(in->library, "double_signature"));
    const char *types = signature(name);
    if (!types) return NOT_FOUND;
    Function *&made = in->functions[name];
    if (!made) made = new Function{in, name, types};
    *function = made;
    return SUCCESS;
}
API cuFuncSetAttribute(void *function, int attribute, int value) {
    ENTER;
    if (attribute != 8) return INVALID_VALUE;
    if (value > 163 << 10) return INVALID_VALUE;
    static_cast<Function *>(function)->shared = value;
    return SUCCESS;
}
// A kernel as it is asked for; checked.
static Result asked(Device &d, Function *f, const unsigned *grid, const unsigned *block, unsigned shared, void **parameters,
                    Kernel *kernel) {
    if (int(shared) > f->shared || block[1] != 1 || block[2] != 1 || !grid[0] || !grid[1] || !grid[2]) return INVALID_VALUE;
    *kernel = {f, {grid[0], grid[1], grid[2]}, block[0], shared, {}};
    for (const char *type = f->signature; *type; ++type) {
        uint64_t word = 0;
        memcpy(&word, parameters[kernel->words.size()], *type == '4' ? 4 : 8);
        if (*type == 'p' && word) {
            char *host = d.at(word, 1);
            if (!host) return fprintf(stderr, "driver double: %s got an address outside of memory\n", f->name.c_str()), ILLEGAL_ADDRESS;
            word = reinterpret_cast<uint64_t>(host);
        }
        kernel->words.push_back(word);
    }
    return SUCCESS;
}
static Result run_kernel(Kernel kernel, uint64_t seed) {
    Device &d = device();
    if (d.fail == "fault" && ++d.ran == d.fail_at) return ILLEGAL_ADDRESS;
    if (d.fail != "fault") ++d.ran;
    Function *f = kernel.function;
    if (!d.modules.count(f->module)) return fprintf(stderr, "driver double: %s is of a module that was unloaded\n", f->name.c_str()), INVALID_HANDLE;
    typedef void (*Run)(const char *, const unsigned *, unsigned, unsigned, void **, uint64_t, char *, size_t);
    Run run = reinterpret_cast<Run>(dlsym(f->module->library, "emulator_launch"));
    std::vector<void *> pointers;
    for (uint64_t &word : kernel.words) pointers.push_back(&word);
    char message[256] = "";
    std::string name = "m/" + f->name;
    if (!d.runner) d.runner = new Runner;
    d.runner->run([&] { run(name.c_str(), kernel.grid, kernel.threads, kernel.shared, pointers.data(), seed, message, sizeof message); });
    if (!*message) return SUCCESS;
    fprintf(stderr, "driver double: %s: %s\n", f->name.c_str(), message);
    return ILLEGAL_ADDRESS;
}
API cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz, unsigned shared,
                   void *stream, void **parameters, void **) {
    ENTER;
    uint64_t number = ++d.launches;
    if (d.fail == "launch" && number == d.fail_at) return OUT_OF_RESOURCES;
    unsigned grid[3] = {x, y, z}, block[3] = {tx, ty, tz};
    Kernel kernel;
    Result right = asked(d, static_cast<Function *>(function), grid, block, shared, parameters, &kernel);
    if (right != SUCCESS) return right;
    Stream *s = static_cast<Stream *>(stream);
    if (s->capture) {
        s->capture->nodes.push_back(new Node{nullptr, kernel});
        return SUCCESS;
    }
    if (d.is_lost()) return d.sticky;
    Operation op;
    uint64_t seed = d.draw();
    op.run = [=] { return run_kernel(kernel, seed); };
    return d.add(s, std::move(op));
}

// --- graphs: what one stream was given while it captured, in its order

API cuStreamBeginCapture_v2(void *stream, int) {
    ENTER;
    if (d.fail == "graphs") return NOT_SUPPORTED;
    Stream *s = static_cast<Stream *>(stream);
    if (s->capture) return d.spoiled(s);
    s->capture = new Graph;
    return SUCCESS;
}
API cuStreamEndCapture(void *stream, void **graph) {
    ENTER;
    Stream *s = static_cast<Stream *>(stream);
    if (!s->capture) return INVALID_VALUE;
    Graph *made = s->capture;
    s->capture = nullptr;
    *graph = nullptr;
    if (!made->whole || (d.fail == "capture" && ++d.captures == d.fail_at)) return CAPTURE_INVALIDATED;
    d.graphs.insert(made);
    *graph = made;
    return SUCCESS;
}
API cuStreamGetCaptureInfo_v2(void *stream, int *status, uint64_t *, void **, Node ***dependencies, size_t *count) {
    ENTER;
    Graph *graph = static_cast<Stream *>(stream)->capture;
    *status = !graph ? 0 : graph->whole ? 1 : 2;
    if (!graph) return SUCCESS;
    *count = graph->nodes.empty() ? 0 : 1;
    *dependencies = graph->nodes.empty() ? nullptr : &graph->nodes.back();
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
    ENTER;
    Graph *of = static_cast<Graph *>(graph);
    if (!d.graphs.count(of)) return INVALID_VALUE;
    Executable *made = new Executable;
    for (Node *node : of->nodes) {
        made->index[node] = made->nodes.size();
        made->nodes.push_back(*node);
    }
    d.executables.insert(made);
    *executable = made;
    return SUCCESS;
}
struct KernelNodeParams {
    void *function;
    unsigned grid[3], block[3], shared;
    void **parameters, **extra;
    void *kernel, *context;
};
API cuGraphExecKernelNodeSetParams_v2(void *executable, void *node, const KernelNodeParams *params) {
    ENTER;
    Executable *in = static_cast<Executable *>(executable);
    auto found = in->index.find(static_cast<Node *>(node));
    if (!d.executables.count(in) || found == in->index.end() || params->extra) return INVALID_VALUE;
    Node &own = in->nodes[found->second];
    if (!own.kernel.function) return INVALID_VALUE;
    d.renewed += 1;
    Kernel kernel;
    Result right = asked(d, static_cast<Function *>(params->function), params->grid, params->block, params->shared,
                         params->parameters, &kernel);
    if (right == SUCCESS && d.fail != "stale") own.kernel = kernel;
    return right;
}
API cuGraphLaunch(void *executable, void *stream) {
    ENTER;
    Executable *of = static_cast<Executable *>(executable);
    Stream *s = static_cast<Stream *>(stream);
    if (!d.executables.count(of) || s->capture) return INVALID_VALUE;
    d.graph_launches += 1;
    for (Node &node : of->nodes) {
        Result queued;
        if (node.record)
            queued = d.events.count(node.record) ? d.record(s, node.record) : INVALID_HANDLE;
        else {
            Operation op;
            op.run = node.run;
            if (node.kernel.function) {
                if (d.is_lost()) return d.sticky;
                op.run = [kernel = node.kernel, seed = d.draw()] { return run_kernel(kernel, seed); };
            }
            queued = d.add(s, std::move(op));
        }
        if (queued != SUCCESS) return queued;
    }
    return SUCCESS;
}
API cuGraphExecDestroy(void *executable) {
    Device &d = device();
    std::lock_guard<std::recursive_mutex> held(d.lock);
    Executable *known = static_cast<Executable *>(executable);
    if (!d.executables.erase(known)) return INVALID_HANDLE;
    delete known;
    return d.sticky;
}
API cuGraphDestroy(void *graph) {
    Device &d = device();
    std::lock_guard<std::recursive_mutex> held(d.lock);
    Graph *known = static_cast<Graph *>(graph);
    if (!d.graphs.erase(known)) return INVALID_HANDLE;
    for (Node *node : known->nodes) delete node;
    delete known;
    return d.sticky;
}

// --- for the double of cuBLASLt: where a device's bytes lie, and work of the host's in a stream

extern "C" __attribute__((visibility("default"))) char *double_at(Address address, size_t bytes) {
    Device &d = device();
    std::lock_guard<std::recursive_mutex> held(d.lock);
    return d.at(address, bytes);
}
API double_enqueue(void *stream, const std::function<void()> *run) {
    ENTER;
    Operation op;
    op.run = [run = *run] { return run(), SUCCESS; };
    return d.add(static_cast<Stream *>(stream), std::move(op));
}

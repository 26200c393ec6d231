// A double of NVIDIA's kernel compiler (libnvrtc.so.12) for tests: it compiles a text with the C++ compiler behind the emulator of
// tests/kernels, keeps the library by a hash of its text, and its "machine code" is that library's path.
//
// Compiled with HOME (tests/kernels), CACHE (a folder), CXX and FLAGS as texts. MEMFIT_DOUBLE_COMPILED: a file that gets a line for each text that
// the compiler is asked for.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <unistd.h>

struct Program {
    std::string text, image, log;
};
#define API extern "C" __attribute__((visibility("default"))) int

// What each kernel takes, for the double of the driver, beside what the emulator keeps of it.
static const char *AHEAD = R"(
#include "emulator.hpp"
#include <type_traits>
namespace emulator {
inline std::map<std::string, std::string> &signatures() {
    static std::map<std::string, std::string> all;
    return all;
}
template <class... P> std::string signature(void (*)(P...)) {
    return std::string{(std::is_pointer<P>::value ? 'p' : sizeof(P) == 4 ? '4' : '8')...};
}
inline bool sign(const char *name, const std::string &types) { return signatures()[name] = types, true; }
}
#undef KERNEL
#define KERNEL(name, ...)                                                                                              \
    static void name(__VA_ARGS__);                                                                                     \
    static bool name##_added = emulator::add("m/" #name, emulator::Call<name>::call);                                  \
    static bool name##_signed = emulator::sign(#name, emulator::signature(name));                                      \
    static void name(__VA_ARGS__)
extern "C" __attribute__((visibility("default"))) const char *double_signature(const char *name) {
    auto found = emulator::signatures().find(name);
    return found == emulator::signatures().end() ? nullptr : found->second.c_str();
}
namespace m {
)";

static uint64_t hash(const std::string &text, uint64_t start) {
    for (unsigned char c : text) start = (start ^ c) * 0x100000001b3ull;
    return start;
}

static std::string file(const std::string &path) {
    std::ifstream in(path);
    std::stringstream all;
    all << in.rdbuf();
    return all.str();
}

API nvrtcVersion(int *major, int *minor) { return *major = 12, *minor = 8, 0; }
API nvrtcGetNumSupportedArchs(int *count) { return *count = 2, 0; }
API nvrtcGetSupportedArchs(int *list) { return list[0] = 75, list[1] = 80, 0; }
API nvrtcCreateProgram(void **program, const char *text, const char *, int, const char **, const char **) {
    *program = new Program{text, "", ""};
    return 0;
}
API nvrtcDestroyProgram(void **program) {
    delete static_cast<Program *>(*program);
    return 0;
}
API nvrtcCompileProgram(void *program, int, const char **) {
    Program &p = *static_cast<Program *>(program);
    if (const char *path = getenv("MEMFIT_DOUBLE_COMPILED")) std::ofstream(path, std::ios::app) << p.text.size() << "\n";
    std::string source = AHEAD + p.text + "\n}\n";
    uint64_t key = hash(source, hash(file(HOME "/emulator.hpp"), hash(FLAGS, 0xcbf29ce484222325ull)));
    char name[32];
    snprintf(name, sizeof name, "/%016llx", (unsigned long long)key);
    std::string made = std::string(CACHE) + name + ".so";
    struct stat there;
    if (stat(made.c_str(), &there) != 0) {
        char unique[64];
        static thread_local int mine;
        snprintf(unique, sizeof unique, "-%d-%p", getpid(), (void *)&mine);
        std::string base = std::string(CACHE) + name + unique, text = base + ".cpp", out = base + ".so", log = base + ".log";
        std::ofstream(text) << source;
        std::string command = std::string(CXX " " FLAGS " -I " HOME " ") + text + " -o " + out + " >" + log + " 2>&1";
        int failed = system(command.c_str());
        p.log = file(log);
        remove(text.c_str());
        remove(log.c_str());
        if (failed) return 6;
        rename(out.c_str(), made.c_str());
    }
    p.image = "driver double: " + made;
    return 0;
}
API nvrtcGetProgramLogSize(void *program, size_t *size) { return *size = static_cast<Program *>(program)->log.size() + 1, 0; }
API nvrtcGetProgramLog(void *program, char *log) { return strcpy(log, static_cast<Program *>(program)->log.c_str()), 0; }
API nvrtcGetCUBINSize(void *program, size_t *size) { return *size = static_cast<Program *>(program)->image.size() + 1, 0; }
API nvrtcGetCUBIN(void *program, char *image) { return strcpy(image, static_cast<Program *>(program)->image.c_str()), 0; }
API nvrtcGetPTXSize(void *program, size_t *size) { return nvrtcGetCUBINSize(program, size); }
API nvrtcGetPTX(void *program, char *image) { return nvrtcGetCUBIN(program, image); }

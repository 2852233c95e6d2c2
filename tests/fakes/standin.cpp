// A stand-in for libcuda.so.1, for tests without a GPU: what pycuda, cuda.bindings and diinn use of the documented
// driver API, on host memory. Stricter than the real driver where that leaves a choice:
//
// - work on a stream is done when somebody waits for it, as late as the real driver may do it; a stream that waits for an
//   event of another lets that one run as far ahead as it can
// - device memory begins as NaN and lies between pages that nobody may touch; what was freed may not be touched either.
//   A kernel that does ends as on a GPU: CUDA_ERROR_ILLEGAL_ADDRESS, now and at every later call
// - calls without a current context, with unknown handles or addresses, and launches beyond the device's or the kernel's
//   limits are refused; so is what breaks a capture, and that capture with it
// - copies of pageable memory are refused in a capture (the real driver would read it at each launch)
//
// Kernels: names, parameters, launch bounds, registers and static shared memory are read from the cubin that is loaded;
// what a launch does is ``launch_NAME`` of the host libraries given to ``standin_kernels`` (tests/fakes/emulator.h).
// One lock for everything: a host function that waits for another thread's call would wait for ever.

#include <cuda.h>
#include <dlfcn.h>
#include <elf.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

typedef const char *Launch(int grid, int block, int shared, void **arguments);  // null, or what is wrong

struct Work {
    std::function<std::string()> run;
    bool guarded;  // whether what it touches wrongly is the device's error; Python's own is not
    CUstream after = nullptr;  // in place of ``run``: whose work is done first
};
struct CUctx_st { int retained = 0; };
struct CUgraph_st { std::vector<Work> works; };
struct CUgraphExec_st { std::vector<Work> works; };
struct CUstream_st {
    std::vector<Work> queue;
    CUgraph graph = nullptr;  // while capturing
    bool broken = false;
};
struct CUevent_st { double at = -1; CUstream stream = nullptr; bool recorded = false, captured = false; int turn = 0; };
struct Parameter { unsigned offset, size; };
struct CUfunc_st {
    std::string name;
    Launch *launch = nullptr;
    std::vector<Parameter> parameters;
    unsigned bytes = 0;  // of all parameters
    int threads = 1024, registers = 0, fixed_shared = 0, most_shared = 48 * 1024;
};
struct CUmod_st { std::map<std::string, std::unique_ptr<CUfunc_st>> functions; };
struct Block { char *base; size_t pages, asked, size; };

static std::map<std::string, long long> device = {{"capability", 87},           {"multiprocessors", 2},
                                                  {"shared", 163 * 1024},       {"memory", 4ll << 30},
                                                  {"driver", CUDA_VERSION},     {"integrated", 0}};
static std::recursive_mutex lock;
static CUctx_st primary;
static CUstream_st legacy;
static thread_local std::vector<CUcontext> contexts;
static thread_local CUstream capturing = nullptr;  // begun by this thread
static bool initialised = false;
static CUresult lost = CUDA_SUCCESS;  // what every call returns after a kernel has failed
static size_t used = 0;
static std::map<CUdeviceptr, Block> blocks;
static std::map<uintptr_t, size_t> pinned;
static std::set<uintptr_t> seen_by_kernels;  // of them, those that are mapped
static std::set<CUstream> streams;
static std::set<CUevent> events;
static std::vector<std::unique_ptr<CUevent_st>> ended;  // events that are destroyed and may still be on a stream
static std::set<CUmodule> modules;
static std::set<CUgraph> graphs;
static std::set<CUgraphExec> executables;
static std::vector<void *> libraries;
static std::string complaints;

template <typename... Values>
static CUresult refuse(CUresult result, const char *form, Values... values) {
    char line[400];
    snprintf(line, sizeof line, form, values...);
    complaints += std::string(line) + "\n";
    return result;
}

#define BEGIN                                                                                                     \
    std::lock_guard<std::recursive_mutex> held(lock);                                                             \
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;                                                          \
    if (lost) return lost;
#define CONTEXT                                                                                                   \
    BEGIN if (contexts.empty() || !contexts.back()->retained)                                                     \
        return refuse(CUDA_ERROR_INVALID_CONTEXT, "%s without a current context", __func__);
#define UNSAFE                                                                                                    \
    CONTEXT if (capturing) {                                                                                      \
        capturing->broken = true;                                                                                 \
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "%s while capturing", __func__);                     \
    }
#define KNOWN(set, handle) \
    if (!set.count(handle)) return refuse(CUDA_ERROR_INVALID_HANDLE, "%s of an unknown handle", __func__);
#define STREAM(handle) \
    if (handle != &legacy) KNOWN(streams, handle)

static CUstream stream_of(CUstream s) { return !s || s == CU_STREAM_LEGACY || s == CU_STREAM_PER_THREAD ? &legacy : s; }

// A kernel that touches what it may not ends here.
static thread_local sigjmp_buf back;
static thread_local bool guarded = false;
static struct sigaction before[2];
static void fault(int number, siginfo_t *info, void *context) {
    if (guarded) siglongjmp(back, 1);
    const struct sigaction &other = before[number == SIGBUS];
    if (other.sa_flags & SA_SIGINFO) return other.sa_sigaction(number, info, context);
    sigaction(number, &other, nullptr);  // and it happens again
}

static void run(const Work &work) {
    if (lost) return;
    struct sigaction mine = {};
    mine.sa_sigaction = fault, mine.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &mine, &before[0]), sigaction(SIGBUS, &mine, &before[1]);
    std::string wrong;
    if (sigsetjmp(back, 1)) {
        guarded = false, lost = CUDA_ERROR_ILLEGAL_ADDRESS;
        refuse(lost, "an address was touched that is not allocated");
    } else {
        guarded = work.guarded;
        wrong = work.run();
        guarded = false;
    }
    sigaction(SIGSEGV, &before[0], nullptr), sigaction(SIGBUS, &before[1], nullptr);
    if (!wrong.empty()) lost = CUDA_ERROR_LAUNCH_FAILED, refuse(lost, "%s", wrong.c_str());
}

// Between the end of a block and its page's end nobody may write either.
static void check_slack() {
    for (const auto &[address, block] : blocks)
        for (const char *at = (char *)address + block.asked; at < (char *)address + block.size; ++at)
            if (*at != (char)0xA5 && !lost) {
                lost = CUDA_ERROR_ILLEGAL_ADDRESS;
                refuse(lost, "written beyond %zu bytes that were allocated", block.asked);
            }
}

static CUresult drain(CUstream s) {
    while (!s->queue.empty()) {
        const auto queue = std::exchange(s->queue, {});
        for (const Work &work : queue) work.after ? (void)drain(work.after) : run(work);
        check_slack();
    }
    return lost;
}

static CUresult drain_all() {
    for (CUstream s : streams) drain(s);
    drain(&legacy);
    return ended.clear(), lost;
}

static CUresult put(CUstream s, std::function<std::string()> work, bool guard = true) {
    (s->graph ? s->graph->works : s->queue).push_back({std::move(work), guard});
    return CUDA_SUCCESS;
}

static bool on_device(CUdeviceptr from, size_t size) {
    auto found = blocks.upper_bound(from);
    if (found == blocks.begin()) return false;
    --found;
    return from + size <= found->first + found->second.asked;
}

static bool is_pinned(const void *from, size_t size) {
    auto found = pinned.upper_bound((uintptr_t)from);
    if (found == pinned.begin()) return false;
    --found;
    return (uintptr_t)from + size <= found->first + found->second;
}

static char *map_pages(size_t size) {
    void *const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? nullptr : (char *)at;
}

static void give_back(const Block &block) {
    madvise(block.base, block.pages, MADV_DONTNEED);
    mprotect(block.base, block.pages, PROT_NONE);  // never given again
    used -= block.size;
}

static CUresult read_cubin(const char *image, CUmodule module) {
    const auto *header = (const Elf64_Ehdr *)image;
    if (memcmp(header->e_ident, ELFMAG, SELFMAG))
        return refuse(CUDA_ERROR_INVALID_IMAGE, "a module that is no cubin: fat binaries are not read here");
    const unsigned old = header->e_flags & 0xff, now = header->e_flags >> 8 & 0xff;  // where the architecture stands
    const unsigned made = old >= 50 ? old : now;
    if (made != device["capability"])
        return refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "a cubin of sm_%u on a device of sm_%lld", made, device["capability"]);
    const auto *sections = (const Elf64_Shdr *)(image + header->e_shoff);
    const char *names = image + sections[header->e_shstrndx].sh_offset;
    std::map<std::string, const Elf64_Shdr *> by_name;
    for (int i = 0; i < header->e_shnum; ++i) by_name[names + sections[i].sh_name] = &sections[i];
    for (const auto &[name, section] : by_name) {
        if (name.rfind(".nv.info.", 0)) continue;
        auto kernel = std::make_unique<CUfunc_st>();
        kernel->name = name.substr(9);
        // Attributes: format, kind, 16 bits of value, which for format 4 are the bytes that follow.
        const auto *at = (const unsigned char *)image + section->sh_offset, *const end = at + section->sh_size;
        while (at + 4 <= end) {
            const unsigned format = at[0], kind = at[1], value = at[2] | at[3] << 8;
            uint32_t words[3] = {};
            if (format == 4) memcpy(words, at + 4, value < sizeof words ? value : sizeof words);
            if (format == 3 && kind == 0x19) kernel->bytes = value;     // EIATTR_CBANK_PARAM_SIZE
            if (format == 4 && kind == 0x05) kernel->threads = words[0];  // EIATTR_MAX_THREADS
            if (format == 4 && (kind == 0x17 || kind == 0x45)) {        // EIATTR_KPARAM_INFO
                const unsigned ordinal = words[1] & 0xffff;
                if (kernel->parameters.size() <= ordinal) kernel->parameters.resize(ordinal + 1);
                kernel->parameters[ordinal] = {words[1] >> 16, words[2] >> 18};
            }
            at += 4 + (format == 4 ? value : 0);
        }
        if (by_name.count(".text." + kernel->name)) kernel->registers = by_name[".text." + kernel->name]->sh_info >> 24;
        if (by_name.count(".nv.shared." + kernel->name))
            kernel->fixed_shared = (int)by_name[".nv.shared." + kernel->name]->sh_size;
        module->functions[kernel->name] = std::move(kernel);
    }
    return module->functions.empty() ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}

extern "C" {

// What tests ask of the stand-in itself.

void standin_set(const char *name, long long value) { device.at(name) = value; }

long long standin_count(const char *name) {
    const std::map<std::string, size_t> counts = {
        {"retained", primary.retained}, {"bytes", used}, {"blocks", blocks.size()}, {"pinned", pinned.size()},
        {"streams", streams.size()}, {"events", events.size()}, {"modules", modules.size()}, {"graphs", graphs.size()},
        {"executables", executables.size()}};
    return (long long)counts.at(name);
}

// A host library with ``launch_NAME`` of kernels; those given last are asked first.
int standin_kernels(const char *path) {
    void *const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library) libraries.push_back(library);
    return library != nullptr;
}

// What was refused since the last call, a line each.
const char *standin_complaints(void) {
    static std::string told;
    told = std::exchange(complaints, "");
    return told.c_str();
}

// After a kernel has failed a real process has to end; here the device recovers, without what lay on it.
void standin_recover(void) {
    std::lock_guard<std::recursive_mutex> held(lock);
    if (!lost) return;
    lost = CUDA_SUCCESS;
    for (CUstream s : streams) s->queue.clear();
    for (const auto &[address, block] : blocks) give_back(block);
    blocks.clear();
}

CUresult cuGetErrorString(CUresult result, const char **text) {
    static thread_local char line[40];
    snprintf(line, sizeof line, "error %d of the stand-in", (int)result);
    return *text = line, CUDA_SUCCESS;
}

int standin_missing(const char *name) { return refuse(CUDA_ERROR_NOT_SUPPORTED, "%s is not played here", name); }

// The driver API.

// How cuda.bindings finds every function: the newest one by a name that is played here.
CUresult cuGetProcAddress(const char *name, void **found, int, cuuint64_t, CUdriverProcAddressQueryResult *status) {
    void *const own = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    *found = nullptr;
    for (const char *ending : {"_v3", "_v2", ""})
        if (!*found) *found = dlsym(own, (std::string(name) + ending).c_str());
    if (status) *status = *found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
// NVRTC of CUDA 13 looks for NVIDIA's own tables, which only the real driver has.
CUresult cuGetExportTable(const void **table, const CUuuid *) { return *table = nullptr, CUDA_ERROR_NOT_FOUND; }
CUresult cuInit(unsigned) { return initialised = true, CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = (int)device["driver"], CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { BEGIN return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *found, int ordinal) {
    BEGIN return *found = 0, ordinal ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *name, int size, CUdevice) { BEGIN return snprintf(name, size, "Stand-in"), CUDA_SUCCESS; }
CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice) {
    BEGIN *major = (int)device["capability"] / 10, *minor = (int)device["capability"] % 10;
    return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t *size, CUdevice) { BEGIN return *size = device["memory"], CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute which, CUdevice) {
    BEGIN const std::map<int, long long> known = {
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device["capability"] / 10},
        {CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device["capability"] % 10},
        {CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device["multiprocessors"]},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, 48 * 1024},
        {CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, device["shared"]},
        {CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK, 1024},
        {CU_DEVICE_ATTRIBUTE_INTEGRATED, device["integrated"]},
        {CU_DEVICE_ATTRIBUTE_WARP_SIZE, 32}};
    const auto found = known.find(which);
    if (found == known.end()) return refuse(CUDA_ERROR_NOT_SUPPORTED, "device attribute %d is not played here", which);
    return *value = (int)found->second, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) {
    BEGIN return ++primary.retained, *context = &primary, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease(CUdevice) {
    std::lock_guard<std::recursive_mutex> held(lock);
    if (!primary.retained) return refuse(CUDA_ERROR_INVALID_CONTEXT, "a primary context released that nobody holds");
    return --primary.retained, CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent(CUcontext context) {
    std::lock_guard<std::recursive_mutex> held(lock);
    if (context != &primary || !primary.retained)
        return refuse(CUDA_ERROR_INVALID_CONTEXT, "a context pushed that is not retained");
    return contexts.push_back(context), CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent(CUcontext *context) {
    std::lock_guard<std::recursive_mutex> held(lock);
    if (contexts.empty()) return refuse(CUDA_ERROR_INVALID_CONTEXT, "no context to pop");
    if (context) *context = contexts.back();
    return contexts.pop_back(), CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) {
    BEGIN return *context = contexts.empty() ? nullptr : contexts.back(), CUDA_SUCCESS;
}
CUresult cuCtxDetach(CUcontext) { return refuse(CUDA_ERROR_INVALID_CONTEXT, "cuCtxDetach of a primary context"); }
CUresult cuCtxGetDevice(CUdevice *found) { CONTEXT return *found = 0, CUDA_SUCCESS; }
CUresult cuCtxGetApiVersion(CUcontext, unsigned *version) { BEGIN return *version = 3020, CUDA_SUCCESS; }
CUresult cuCtxSynchronize(void) { UNSAFE return drain_all(); }

CUresult cuMemGetInfo(size_t *free, size_t *total) {
    CONTEXT *total = device["memory"], *free = used < *total ? *total - used : 0;
    return CUDA_SUCCESS;
}
CUresult cuMemAlloc(CUdeviceptr *address, size_t asked) {
    UNSAFE const size_t size = (asked + 255) / 256 * 256, pages = (size + 4095) / 4096 * 4096;
    if (!asked) return refuse(CUDA_ERROR_INVALID_VALUE, "no bytes to allocate");
    if (asked > (size_t)device["memory"] || used + size > (size_t)device["memory"]) return CUDA_ERROR_OUT_OF_MEMORY;
    char *const base = map_pages(pages + 2 * 4096);
    if (!base) return CUDA_ERROR_OUT_OF_MEMORY;
    mprotect(base, 4096, PROT_NONE), mprotect(base + 4096 + pages, 4096, PROT_NONE);
    char *const begin = base + 4096 + pages - size;
    memset(begin, 0xff, asked), memset(begin + asked, 0xA5, size - asked);
    *address = (CUdeviceptr)begin, blocks[*address] = {base + 4096, pages, asked, size}, used += size;
    return CUDA_SUCCESS;
}
CUresult cuMemFree(CUdeviceptr address) {
    UNSAFE if (const CUresult result = drain_all()) return result;
    const auto found = blocks.find(address);
    if (found == blocks.end()) return refuse(CUDA_ERROR_INVALID_VALUE, "memory freed that is not allocated");
    give_back(found->second), blocks.erase(found);
    return CUDA_SUCCESS;
}
CUresult cuMemHostAlloc(void **address, size_t size, unsigned flags) {
    UNSAFE if (size > (size_t)device["memory"]) return CUDA_ERROR_OUT_OF_MEMORY;
    char *const base = map_pages((size + 4095) / 4096 * 4096 + 4096);
    if (!base) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(base, 0xff, size);
    if (flags & CU_MEMHOSTALLOC_DEVICEMAP) seen_by_kernels.insert((uintptr_t)base);
    return *address = base, pinned[(uintptr_t)base] = size, CUDA_SUCCESS;
}
CUresult cuMemHostGetDevicePointer(CUdeviceptr *address, void *of, unsigned) {
    CONTEXT if (!seen_by_kernels.count((uintptr_t)of))
        return refuse(CUDA_ERROR_INVALID_VALUE, "the address of pinned memory that is not mapped");
    return *address = (CUdeviceptr)of, CUDA_SUCCESS;
}
CUresult cuMemAllocHost(void **address, size_t size) { return cuMemHostAlloc(address, size, 0); }
CUresult cuMemFreeHost(void *address) {
    UNSAFE if (const CUresult result = drain_all()) return result;
    const auto found = pinned.find((uintptr_t)address);
    if (found == pinned.end()) return refuse(CUDA_ERROR_INVALID_VALUE, "pinned memory freed that is not allocated");
    memset(address, 0xff, found->second);  // whoever still reads it sees it
    return seen_by_kernels.erase((uintptr_t)address), pinned.erase(found), CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t size, CUstream handle) {
    CONTEXT const CUstream s = stream_of(handle);
    STREAM(s)
    if (!on_device(to, size)) return refuse(CUDA_ERROR_INVALID_VALUE, "%zu bytes copied to where they are not allocated", size);
    if (is_pinned(from, size)) return put(s, [=] { return memcpy((void *)to, from, size), ""; });
    if (s->graph) return s->broken = true, refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a copy of pageable memory while capturing");
    auto taken = std::make_shared<std::string>((const char *)from, size);  // as the real driver when it returns
    return put(s, [=] { return memcpy((void *)to, taken->data(), size), ""; });
}
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t size, CUstream handle) {
    CONTEXT const CUstream s = stream_of(handle);
    STREAM(s)
    if (!on_device(from, size)) return refuse(CUDA_ERROR_INVALID_VALUE, "%zu bytes copied from where they are not allocated", size);
    const bool now = !is_pinned(to, size);
    if (now && s->graph) return s->broken = true, refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a copy to pageable memory while capturing");
    put(s, [=] { return memcpy(to, (void *)from, size), ""; });
    return now ? drain(s) : CUDA_SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t size, CUstream handle) {
    CONTEXT const CUstream s = stream_of(handle);
    STREAM(s)
    if (!on_device(at, size)) return refuse(CUDA_ERROR_INVALID_VALUE, "%zu bytes set where they are not allocated", size);
    return put(s, [=] { return memset((void *)at, value, size), ""; });
}

CUresult cuStreamCreate(CUstream *made, unsigned) { CONTEXT return streams.insert(*made = new CUstream_st), CUDA_SUCCESS; }
CUresult cuStreamDestroy(CUstream s) {
    CONTEXT KNOWN(streams, s) drain(s);
    return streams.erase(s), delete s, CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream handle) {
    CONTEXT const CUstream s = stream_of(handle);
    STREAM(s)
    if (s->graph) return s->broken = true, refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a wait while capturing");
    return drain(s);
}
CUresult cuStreamWaitEvent(CUstream handle, CUevent e, unsigned) {
    CONTEXT const CUstream s = stream_of(handle);
    STREAM(s) KNOWN(events, e)
    if (s->graph || e->captured) {
        if (capturing) capturing->broken = true;
        return refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a wait for an event while capturing");
    }
    if (e->stream && e->at < 0) s->queue.push_back({{}, false, e->stream});
    return CUDA_SUCCESS;
}
CUresult cuStreamQuery(CUstream handle) {
    CONTEXT STREAM(stream_of(handle)) return stream_of(handle)->queue.empty() ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}

static double milliseconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
}
CUresult cuEventCreate(CUevent *made, unsigned) { CONTEXT return events.insert(*made = new CUevent_st), CUDA_SUCCESS; }
CUresult cuEventDestroy(CUevent e) {
    CONTEXT KNOWN(events, e) return events.erase(e), ended.emplace_back(e), CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent e, CUstream handle) {
    CONTEXT const CUstream s = stream_of(handle);
    KNOWN(events, e) STREAM(s)
    e->recorded = true, e->captured = s->graph != nullptr, e->at = -1, e->stream = s;
    return put(s, [=, turn = ++e->turn] { return e->turn == turn ? e->at = milliseconds() : 0, ""; });
}
CUresult cuEventSynchronize(CUevent e) {
    UNSAFE KNOWN(events, e) return e->captured ? CUDA_ERROR_CAPTURED_EVENT : e->stream ? drain(e->stream) : CUDA_SUCCESS;
}
CUresult cuEventQuery(CUevent e) { CONTEXT KNOWN(events, e) return !e->recorded || e->at >= 0 ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY; }
CUresult cuEventElapsedTime(float *found, CUevent from, CUevent to) {
    CONTEXT KNOWN(events, from) KNOWN(events, to)
    if (!from->recorded || !to->recorded) return CUDA_ERROR_INVALID_HANDLE;
    if (from->at < 0 || to->at < 0) return CUDA_ERROR_NOT_READY;
    return *found = (float)(to->at - from->at), CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *made, const void *image) {
    UNSAFE auto module = std::make_unique<CUmod_st>();
    if (const CUresult result = read_cubin((const char *)image, module.get())) return result;
    return modules.insert(*made = module.release()), CUDA_SUCCESS;
}
CUresult cuModuleLoadDataEx(CUmodule *made, const void *image, unsigned, CUjit_option *, void **) {
    return cuModuleLoadData(made, image);
}
CUresult cuModuleUnload(CUmodule module) {
    UNSAFE KNOWN(modules, module) drain_all();
    return modules.erase(module), delete module, CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *found, CUmodule module, const char *name) {
    CONTEXT KNOWN(modules, module) const auto kernel = module->functions.find(name);
    if (kernel == module->functions.end()) return CUDA_ERROR_NOT_FOUND;
    *found = kernel->second.get();
    for (auto library = libraries.rbegin(); library != libraries.rend() && !(*found)->launch; ++library)
        (*found)->launch = (Launch *)dlsym(*library, ("launch_" + std::string(name)).c_str());
    return (*found)->launch ? CUDA_SUCCESS : refuse(CUDA_ERROR_NOT_FOUND, "no launch_%s: call standin_kernels", name);
}
CUresult cuFuncGetAttribute(int *value, CUfunction_attribute which, CUfunction kernel) {
    CONTEXT const std::map<int, int> known = {{CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, kernel->threads},
                                              {CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, kernel->fixed_shared},
                                              {CU_FUNC_ATTRIBUTE_NUM_REGS, kernel->registers},
                                              {CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel->most_shared}};
    const auto found = known.find(which);
    return *value = found == known.end() ? 0 : found->second, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction kernel, CUfunction_attribute which, int value) {
    CONTEXT if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_NOT_SUPPORTED;
    if (value + kernel->fixed_shared > device["shared"])
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %d bytes of shared memory, the device has %lld", kernel->name.c_str(),
                      value, device["shared"]);
    return kernel->most_shared = value, CUDA_SUCCESS;
}
CUresult cuFuncSetBlockShape(CUfunction, int, int, int) { return CUDA_SUCCESS; }
CUresult cuLaunchKernel(CUfunction kernel, unsigned grid, unsigned grid_y, unsigned grid_z, unsigned block, unsigned block_y,
                        unsigned block_z, unsigned shared, CUstream handle, void **parameters, void **extra) {
    CONTEXT const CUstream s = stream_of(handle);
    STREAM(s)
    const char *const name = kernel->name.c_str();
    if (!grid || grid > 0x7fffffffu || grid_y != 1 || grid_z != 1 || !block || block_y != 1 || block_z != 1 || block > 1024)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %u x %u x %u blocks of %u x %u x %u threads", name, grid, grid_y,
                      grid_z, block, block_y, block_z);
    if ((int)block > kernel->threads)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: blocks of %u threads, its launch bounds say %d", name, block, kernel->threads);
    if ((kernel->registers + 7) / 8 * 8 * ((block + 31) / 32 * 32) > 65536)
        return refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "%s: %u threads of %d registers", name, block, kernel->registers);
    if ((int)shared > kernel->most_shared)
        return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %u bytes of shared memory, %d are allowed", name, shared, kernel->most_shared);
    auto given = std::make_shared<std::string>(kernel->bytes, '\0');
    if (extra) {
        const void *from = nullptr;
        size_t size = 0;
        for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
            if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) from = extra[1];
            if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) size = *(size_t *)extra[1];
        }
        if (size != kernel->bytes)
            return refuse(CUDA_ERROR_INVALID_VALUE, "%s: %zu bytes of arguments, it takes %u", name, size, kernel->bytes);
        memcpy(given->data(), from, size);
    } else {
        for (size_t i = 0; i < kernel->parameters.size(); ++i)
            memcpy(given->data() + kernel->parameters[i].offset, parameters[i], kernel->parameters[i].size);
    }
    return put(s, [=, launch = kernel->launch, places = kernel->parameters]() -> std::string {
        std::vector<void *> arguments;
        for (const Parameter &place : places) arguments.push_back(given->data() + place.offset);
        const char *const wrong = launch((int)grid, (int)block, (int)shared, arguments.data());
        return wrong ? wrong : "";
    });
}
CUresult cuLaunchHostFunc(CUstream handle, CUhostFn work, void *data) {
    CONTEXT STREAM(stream_of(handle)) return put(stream_of(handle), [=] { return work(data), ""; }, false);
}

CUresult cuStreamBeginCapture(CUstream s, CUstreamCaptureMode mode) {
    CONTEXT if (stream_of(s) == &legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    KNOWN(streams, s)
    if (mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) return standin_missing("another mode of capture"), CUDA_ERROR_NOT_SUPPORTED;
    if (s->graph || capturing) return refuse(CUDA_ERROR_ILLEGAL_STATE, "a capture within another");
    graphs.insert(s->graph = new CUgraph_st);
    return s->broken = false, capturing = s, CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream s, CUgraph *made) {
    CONTEXT KNOWN(streams, s) if (!s->graph) return CUDA_ERROR_ILLEGAL_STATE;
    if (capturing != s) return refuse(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "a capture ended by another thread");
    *made = std::exchange(s->graph, nullptr), capturing = nullptr;
    if (!s->broken) return CUDA_SUCCESS;
    return graphs.erase(*made), delete *made, *made = nullptr, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *made, CUgraph graph, unsigned long long) {
    CONTEXT KNOWN(graphs, graph) return executables.insert(*made = new CUgraphExec_st{graph->works}), CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec ready, CUstream handle) {
    CONTEXT KNOWN(executables, ready) const CUstream s = stream_of(handle);
    STREAM(s)
    if (s->graph) return s->broken = true, refuse(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "a graph launched while capturing");
    s->queue.insert(s->queue.end(), ready->works.begin(), ready->works.end());
    return CUDA_SUCCESS;
}
CUresult cuGraphDestroy(CUgraph graph) {
    std::lock_guard<std::recursive_mutex> held(lock);
    KNOWN(graphs, graph) return graphs.erase(graph), delete graph, CUDA_SUCCESS;
}
CUresult cuGraphExecDestroy(CUgraphExec ready) {
    std::lock_guard<std::recursive_mutex> held(lock);
    KNOWN(executables, ready) return executables.erase(ready), delete ready, CUDA_SUCCESS;
}
}

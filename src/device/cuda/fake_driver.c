// A stand-in for libcuda in ordinary memory: what the tests of src/device/cuda talk to where there is no GPU.
//
// It keeps the driver's rules that the tests are about (calls need a current context, everything made must be released, a captured
// stream records instead of running) and counts what is alive. Its one kernel copies its parameter structure to the address in the
// structure's first field.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
enum { SUCCESS = 0, INVALID_VALUE = 1, INVALID_CONTEXT = 201, NOT_FOUND = 500, UNSUPPORTED_IN_CAPTURE = 900 };

// What the tests set and read, by number.
enum {
    INIT_STATUS, LOAD_STATUS, CAPABILITY_MAJOR, STATIC_SHARED, OPT_IN,
    CONTEXTS, STACK_DEPTH, MODULES, STREAMS, EVENTS, BUFFERS, GRAPHS,
    LOADS, ALLOCATIONS, WAITS, LAUNCHES, LAST_BLOCKS, LAST_THREADS, LAST_SHARED, NUMBERS
};
static long number[NUMBERS] = {[CAPABILITY_MAJOR] = 9, [OPT_IN] = 232448};
long fake_get(int which) { return number[which]; }
void fake_set(int which, long value) { number[which] = value; }

static char primary;
static __thread void* stack[16];
static __thread int depth;
#define NEEDS_CONTEXT do { if (!depth || !stack[depth - 1]) return INVALID_CONTEXT; } while (0)

Status cuInit(unsigned flags) { return flags ? INVALID_VALUE : (Status)number[INIT_STATUS]; }
Status cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
Status cuGetErrorName(Status status, const char** name) {
    if (status == 12345) return INVALID_VALUE;
    return *name = "CUDA_ERROR_FAKE", SUCCESS;
}
Status cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
Status cuDeviceGet(int* device, int ordinal) { return ordinal ? INVALID_VALUE : (*device = 0, SUCCESS); }
Status cuDeviceGetName(char* name, int bytes, int device) { return (void)device, strncpy(name, "Fake", (size_t)bytes), SUCCESS; }
Status cuDeviceGetAttribute(int* value, int attribute, int device) {
    (void)device;
    switch (attribute) {
        case 16: return *value = 7, SUCCESS;
        case 75: return *value = (int)number[CAPABILITY_MAJOR], SUCCESS;
        case 76: return *value = 0, SUCCESS;
        case 97: return *value = (int)number[OPT_IN], SUCCESS;
        default: return INVALID_VALUE;
    }
}
Status cuDeviceTotalMem_v2(size_t* bytes, int device) { return (void)device, *bytes = 1u << 30, SUCCESS; }

Status cuDevicePrimaryCtxRetain(void** context, int device) { return (void)device, number[CONTEXTS]++, *context = &primary, SUCCESS; }
Status cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, number[CONTEXTS]--, SUCCESS; }
Status cuCtxGetCurrent(void** context) { return *context = depth ? stack[depth - 1] : 0, SUCCESS; }
Status cuCtxPushCurrent_v2(void* context) { return stack[depth++] = context, number[STACK_DEPTH] = depth, SUCCESS; }
Status cuCtxPopCurrent_v2(void** context) {
    if (!depth) return INVALID_CONTEXT;
    return *context = stack[--depth], number[STACK_DEPTH] = depth, SUCCESS;
}

// ---- streams that record or run -------------------------------------------------------------------------------------------

enum { PARAMETER_BYTES = 72, MAX_NODES = 64 };
typedef struct { int count; unsigned char node[MAX_NODES][PARAMETER_BYTES]; } Graph;
static Graph* recording;
static void* recorded_stream;

static void run(const unsigned char* parameters) {
    void* to;
    memcpy(&to, parameters, sizeof to);
    memcpy(to, parameters + 16, PARAMETER_BYTES - 16);
}
static Status wait(void) {
    NEEDS_CONTEXT;
    if (recording) return UNSUPPORTED_IN_CAPTURE;
    return number[WAITS]++, SUCCESS;
}
Status cuStreamSynchronize(void* stream) { return (void)stream, wait(); }
Status cuEventSynchronize(void* event) { return (void)event, wait(); }
Status cuStreamCreate(void** stream, unsigned flags) {
    NEEDS_CONTEXT;
    return (void)flags, number[STREAMS]++, *stream = malloc(1), SUCCESS;
}
Status cuStreamDestroy_v2(void* stream) { return free(stream), number[STREAMS]--, SUCCESS; }
Status cuStreamWaitEvent(void* stream, void* event, unsigned flags) { return (void)stream, (void)event, flags ? INVALID_VALUE : SUCCESS; }
Status cuEventCreate(void** event, unsigned flags) {
    NEEDS_CONTEXT;
    return (void)flags, number[EVENTS]++, *event = malloc(1), SUCCESS;
}
Status cuEventDestroy_v2(void* event) { return free(event), number[EVENTS]--, SUCCESS; }
Status cuEventRecord(void* event, void* stream) { return (void)event, (void)stream, SUCCESS; }
Status cuEventElapsedTime(float* milliseconds, void* start, void* end) { return (void)start, (void)end, *milliseconds = 2.5f, SUCCESS; }

Status cuStreamBeginCapture_v2(void* stream, unsigned mode) {
    NEEDS_CONTEXT;
    if (recording || (uintptr_t)stream <= 2 || mode > 2) return UNSUPPORTED_IN_CAPTURE;
    recording = calloc(1, sizeof *recording);
    recorded_stream = stream;
    return number[GRAPHS]++, SUCCESS;
}
Status cuStreamEndCapture(void* stream, void** graph) {
    if (stream != recorded_stream) return INVALID_VALUE;
    *graph = recording;
    recording = 0;
    return recorded_stream = 0, SUCCESS;
}
Status cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
    if (flags) return INVALID_VALUE;
    *executable = memcpy(malloc(sizeof(Graph)), graph, sizeof(Graph));
    return number[GRAPHS]++, SUCCESS;
}
Status cuGraphLaunch(void* executable, void* stream) {
    (void)stream;
    Graph* graph = executable;
    for (int i = 0; i < graph->count; i++) run(graph->node[i]);
    return SUCCESS;
}
Status cuGraphExecDestroy(void* executable) { return free(executable), number[GRAPHS]--, SUCCESS; }
Status cuGraphDestroy(void* graph) { return free(graph), number[GRAPHS]--, SUCCESS; }

// ---- kernels ----------------------------------------------------------------------------------------------------------------

Status cuModuleLoadData(void** module, const void* image) {
    NEEDS_CONTEXT;
    if (recording) return UNSUPPORTED_IN_CAPTURE;
    if (number[LOAD_STATUS]) return (Status)number[LOAD_STATUS];
    // A fatbin begins with this number.
    if (*(const uint32_t*)image != 0xba55ed50u) return INVALID_VALUE;
    return number[LOADS]++, number[MODULES]++, *module = malloc(1), SUCCESS;
}
Status cuModuleUnload(void* module) { return free(module), number[MODULES]--, SUCCESS; }
Status cuModuleGetFunction(void** function, void* module, const char* name) {
    (void)module;
    if (!strcmp(name, "absent")) return NOT_FOUND;
    return *function = &primary, SUCCESS;
}
static int dynamic_limit = 49152;
Status cuFuncGetAttribute(int* value, int attribute, void* function) {
    (void)function;
    return attribute == 1 ? (*value = (int)number[STATIC_SHARED], SUCCESS) : INVALID_VALUE;
}
Status cuFuncSetAttribute(void* function, int attribute, int value) {
    (void)function;
    if (attribute != 8 || value + number[STATIC_SHARED] > number[OPT_IN]) return INVALID_VALUE;
    return dynamic_limit = value, SUCCESS;
}
Status cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                      void* stream, void** parameters, void** extra) {
    NEEDS_CONTEXT;
    if (!function || !gx || gy != 1 || gz != 1 || !bx || by != 1 || bz != 1 || extra || (int)shared > dynamic_limit) return INVALID_VALUE;
    number[LAUNCHES]++;
    number[LAST_BLOCKS] = gx, number[LAST_THREADS] = bx, number[LAST_SHARED] = shared;
    if (recording && stream == recorded_stream) memcpy(recording->node[recording->count++], parameters[0], PARAMETER_BYTES);
    else run(parameters[0]);
    return SUCCESS;
}

// ---- memory -----------------------------------------------------------------------------------------------------------------

Status cuMemAlloc_v2(uint64_t* pointer, size_t bytes) {
    NEEDS_CONTEXT;
    if (!bytes || recording) return INVALID_VALUE;
    if (bytes > 1u << 30) return 2;
    void* memory = malloc(bytes);
    memset(memory, 0xa5, bytes);
    return number[BUFFERS]++, number[ALLOCATIONS]++, *pointer = (uint64_t)(uintptr_t)memory, SUCCESS;
}
Status cuMemFree_v2(uint64_t pointer) {
    if (wait()) return UNSUPPORTED_IN_CAPTURE;
    return free((void*)(uintptr_t)pointer), number[BUFFERS]--, SUCCESS;
}
Status cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    return (void)stream, memcpy((void*)(uintptr_t)to, from, bytes), SUCCESS;
}
Status cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    NEEDS_CONTEXT;
    return (void)stream, memcpy(to, (const void*)(uintptr_t)from, bytes), SUCCESS;
}
Status cuMemsetD8Async(uint64_t to, unsigned char byte, size_t count, void* stream) {
    NEEDS_CONTEXT;
    return (void)stream, memset((void*)(uintptr_t)to, byte, count), SUCCESS;
}

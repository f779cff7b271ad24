#include "fiber.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emulation {

namespace {

const size_t PAGE = static_cast<size_t>(sysconf(_SC_PAGESIZE));

}  // namespace

char* map_stack() {
    void* whole = mmap(nullptr, PAGE + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED) return nullptr;
    if (mprotect(whole, PAGE, PROT_NONE) != 0) {
        munmap(whole, PAGE + STACK_BYTES);
        return nullptr;
    }
    return static_cast<char*>(whole) + PAGE;
}

void unmap_stack(char* stack) { munmap(stack - PAGE, PAGE + STACK_BYTES); }

void Context::adopt_caller() {
#if defined(MOERL_EMULATION_ASAN)
    pthread_attr_t attributes;
    void* lowest = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &lowest, &stack_bytes);
        pthread_attr_destroy(&attributes);
    }
    stack = static_cast<char*>(lowest);
#elif defined(MOERL_EMULATION_TSAN)
    tsan = __tsan_get_current_fiber();
#endif
}

#if defined(__x86_64__)

// What a function must preserve by the System V ABI: six registers and the stack pointer. The control words of the floating-point
// units count as well, but nothing here changes them.
extern "C" void moerl_emulation_swap(void** save, void* load);
asm(R"(
    .text
    .globl moerl_emulation_swap
    .hidden moerl_emulation_swap
    .type moerl_emulation_swap, @function
moerl_emulation_swap:
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
    .size moerl_emulation_swap, . - moerl_emulation_swap
)");

namespace {

void swap(Context& from, Context& to) { moerl_emulation_swap(&from.stack_pointer, to.stack_pointer); }

}  // namespace

void Context::begin(void (*entry)(), unsigned stagger) {
    constexpr unsigned LINES = 61, LINE = 64;
    uintptr_t top = reinterpret_cast<uintptr_t>(stack) + stack_bytes - LINE - stagger % LINES * LINE;
    top &= ~static_cast<uintptr_t>(15);
    // As a call would leave it: on entry the stack pointer is 8 below a multiple of 16, and the word there is the return address.
    void** words = reinterpret_cast<void**>(top) - 1;
    *words = nullptr;
    *--words = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--words = nullptr;
    stack_pointer = words;
}

#else

namespace {

void swap(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }

}  // namespace

void Context::begin(void (*entry)(), unsigned) {
    getcontext(&saved);
    saved.uc_stack.ss_sp = stack;
    saved.uc_stack.ss_size = stack_bytes;
    saved.uc_link = nullptr;
    makecontext(&saved, entry, 0);
}

#endif

void switch_context(Context& from, Context& to, [[maybe_unused]] bool forever) {
#if defined(MOERL_EMULATION_ASAN)
    __sanitizer_start_switch_fiber(forever ? nullptr : &from.fake_stack, to.stack, to.stack_bytes);
#elif defined(MOERL_EMULATION_TSAN)
    __tsan_switch_to_fiber(to.tsan, 1);  // 1: the switch itself orders nothing
#endif
    swap(from, to);
#if defined(MOERL_EMULATION_ASAN)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void arrived_by_switch() {
#if defined(MOERL_EMULATION_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace emulation

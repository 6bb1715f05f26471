// Where the compiler's own watch reports to: it may not throw, so the fault is kept and found after the thread.
#pragma once

#include "lanes.hpp"

namespace shim {

inline void undefined(const char* what) {
    if (group.fault.empty()) {
        group.fault = std::string("undefined: ") + what;
    }
}

}  // namespace shim

extern "C" {
void __ubsan_handle_shift_out_of_bounds(void*, void*, void*) { shim::undefined("a shift by more than there are bits"); }
void __ubsan_handle_out_of_bounds(void*, void*) { shim::undefined("an index outside of a thread's own array"); }
}

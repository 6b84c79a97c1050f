// The CUDA side of the extension, as the bindings see it. Each function launches one kernel on the caller's stream and
// returns without waiting; a launch that fails is a std::runtime_error with the op's name and shapes.
#pragma once

#include "cpu_ops.h"

namespace fig {

struct CudaQueue {
    int device;
    uintptr_t stream;  // a cudaStream_t
};

// A category out of range leaves its one-hot zero: the kernel cannot raise, and must not write past the row.
void cuda_pack_codes(const PackCodes&, CudaQueue);
void cuda_unpack_codes(const UnpackCodes&, CudaQueue);
void cuda_recognize(const Recognize&, CudaQueue);

}  // namespace fig

// The table through which the bindings reach the functions of this instruction set.
#include "cpu_kernels.h"

#define FIG_JOIN_(a, b) a##b
#define FIG_JOIN(a, b) FIG_JOIN_(a, b)
#define FIG_TEXT_(a) #a
#define FIG_TEXT(a) FIG_TEXT_(a)

namespace fig {

extern const CpuOps FIG_JOIN(cpu_ops_, FIG_ISA);

const CpuOps FIG_JOIN(cpu_ops_, FIG_ISA) = {
    FIG_TEXT(FIG_ISA),
    FIG_ISA::sample_latents_scratch,
    FIG_ISA::sample_latents,
    FIG_ISA::head_loss_scratch,
    FIG_ISA::head_loss,
    FIG_ISA::image_batch_scratch,
    FIG_ISA::image_batch,
    FIG_ISA::pack_codes,
    FIG_ISA::unpack_codes,
    FIG_ISA::recognize,
    FIG_ISA::patches,
    FIG_ISA::fold,
    FIG_ISA::transpose,
    FIG_ISA::norm_act_scratch,
    FIG_ISA::norm_act,
    FIG_ISA::norm_act_backward,
    FIG_ISA::adam,
};

}  // namespace fig

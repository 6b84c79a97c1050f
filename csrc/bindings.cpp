// fastinfogan._C: the ops with data pointers and streams as integers, so that it is tied to no version of torch.
//
// fastinfogan/ops/native.py is the only caller; it allocates the outputs, and what it passes is trusted.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <climits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu_ops.h"
#if defined(FIG_WITH_CUDA)
#include "cuda_ops.h"
#endif

#if !defined(FIG_CUDA_ARCHS)
#define FIG_CUDA_ARCHS ""
#endif

namespace py = pybind11;

namespace {

using fig::CpuOps;
using fig::Dtype;
using fig::OutOfRange;
using fig::Strided;
using Address = uintptr_t;

// ------------------------------------------------------------------------------------------- instruction sets

// What this machine runs, fastest first.
std::vector<const CpuOps*> supported_ops() {
    std::vector<const CpuOps*> supported;
#if defined(FIG_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        supported.push_back(&fig::cpu_ops_avx512);
    if (avx2) supported.push_back(&fig::cpu_ops_avx2);
#endif
    supported.push_back(&fig::cpu_ops_baseline);
    return supported;
}

const CpuOps* cpu = supported_ops().front();

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (const CpuOps* ops : supported_ops()) names.emplace_back(ops->isa);
    return names;
}

// Whether libraries that look at the maker before the instruction sets (MKL) use all that this processor has.
bool processor_is_intel() {
#if defined(FIG_X86)
    __builtin_cpu_init();
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

// All sets give the same bits; the tests use this to show it.
void use_isa(const std::string& isa) {
    for (const CpuOps* ops : supported_ops())
        if (isa == ops->isa) {
            cpu = ops;
            return;
        }
    throw std::invalid_argument("this machine does not run " + isa);
}

// ----------------------------------------------------------------------------------------------------- layouts

class Layout {
   public:
    Layout(int64_t noise, bool noise_normal, std::vector<int64_t> categorical, const std::vector<bool>& normal,
           std::vector<double> entropies)
        : sizes_(std::move(categorical)), normal_(normal.begin(), normal.end()), entropies_(std::move(entropies)) {
        int64_t columns = 0, widest = 1;
        for (const int64_t k : sizes_) {
            if (k < 1 || k > INT32_MAX) throw std::invalid_argument("a code of " + std::to_string(k) + " categories");
            offsets_.push_back(columns);
            columns += k;
            widest = std::max(widest, k);
        }
        const int64_t n_categorical = int64_t(sizes_.size()), n_continuous = int64_t(normal_.size());
        const int64_t n_codes = n_categorical + n_continuous;
        if (noise < 0) throw std::invalid_argument("negative noise");
        entropies_.resize(size_t(n_codes), 0.0);
        view_ = {noise,          noise_normal,      n_categorical,   n_continuous,
                 sizes_.data(),  offsets_.data(),   normal_.data(),  entropies_.data(),
                 columns,        widest,            n_codes,         noise + columns + n_continuous,
                 columns + 2 * n_continuous};
    }
    Layout(const Layout&) = delete;
    Layout& operator=(const Layout&) = delete;

    const fig::Layout& view() const { return view_; }

   private:
    std::vector<int64_t> sizes_, offsets_;
    std::vector<uint8_t> normal_;
    std::vector<double> entropies_;
    fig::Layout view_;
};

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// A dtype below 0 says that the tensor is absent.
Strided strided(Address address, int dtype, int64_t rows, int64_t stride) {
    return {dtype >= 0, at<const void>(address), Dtype(dtype < 0 ? 0 : dtype), dtype < 0 ? 0 : rows, stride};
}

// Uninitialised, unlike a vector.
template <class T>
std::unique_ptr<T[]> scratch(int64_t n) {
    return std::unique_ptr<T[]>(new T[size_t(n)]);
}

void check_categories(const char* op, const fig::Layout& layout, OutOfRange wrong) {
    if (wrong.row < 0) return;
    throw py::index_error(std::string(op) + ": row " + std::to_string(wrong.row) + " holds category " +
                          std::to_string(wrong.value) + " of code " + std::to_string(wrong.column) +
                          ", which has 0 to " + std::to_string(layout.sizes[wrong.column] - 1));
}

// --------------------------------------------------------------------------------------------------------- ops

void sample_latents(const Layout& layout, Address seed, Address step, uint32_t stream, int64_t row_offset, int64_t rows,
                    int dtype, Address z, Address categories, Address continuous, int threads) {
    const py::gil_scoped_release release;
    fig::SampleLatents op{layout.view(), *at<const uint64_t>(seed), *at<const uint64_t>(step), stream,  row_offset, rows,
                          Dtype(dtype),  at<void>(z),               at<int64_t>(categories),   at<float>(continuous),
                          threads,       nullptr};
    if (rows == 0 || layout.view().noise + layout.view().n_codes == 0) return;
    const auto memory = scratch<uint32_t>(cpu->sample_latents_scratch(op));
    op.scratch = memory.get();
    cpu->sample_latents(op);
}

void head_loss(const Layout& layout, Address fake, int fake_dtype, int64_t rows, int64_t fake_stride, Address real,
               int real_dtype, int64_t real_rows, int64_t real_stride, Address recognition, int recognition_dtype,
               int64_t recognition_stride, Address categories, Address continuous, Address weights, Address loss_scale,
               bool saturating, bool fixed_std, Address statistics, Address real_gradient, Address fake_gradient,
               Address recognition_gradient, int threads) {
    OutOfRange wrong;
    {
        const py::gil_scoped_release release;
        fig::HeadLoss op{layout.view(),
                         strided(fake, fake_dtype, rows, fake_stride),
                         strided(real, real_dtype, real_rows, real_stride),
                         strided(recognition, recognition_dtype, rows, recognition_stride),
                         at<const int64_t>(categories),
                         at<const float>(continuous),
                         at<const float>(weights),
                         at<const float>(loss_scale),
                         saturating,
                         fixed_std,
                         at<float>(statistics),
                         at<void>(real_gradient),
                         at<void>(fake_gradient),
                         at<void>(recognition_gradient),
                         threads,
                         nullptr};
        const auto memory = scratch<double>(cpu->head_loss_scratch(op));
        op.scratch = memory.get();
        wrong = cpu->head_loss(op);
    }
    check_categories("head_loss", layout.view(), wrong);
}

void image_batch(Address images, int64_t n_images, int64_t height, int64_t width, int64_t channels, Address index,
                 int64_t rows, int64_t row_offset, float scale, float low, Address flip_seed, Address step,
                 uint32_t stream, int dtype, Address batch, int threads) {
    OutOfRange wrong;
    {
        const py::gil_scoped_release release;
        fig::ImageBatch op{at<const uint8_t>(images), n_images,
                           height,                    width,
                           channels,                  at<const int64_t>(index),
                           rows,                      row_offset,
                           scale,                     low,
                           at<const uint64_t>(flip_seed), *at<const uint64_t>(step),
                           stream,                    Dtype(dtype),
                           at<void>(batch),           threads,
                           nullptr};
        const auto memory = scratch<uint8_t>(cpu->image_batch_scratch(op));
        op.scratch = memory.get();
        wrong = cpu->image_batch(op);
    }
    if (wrong.row >= 0)
        throw py::index_error("image_batch: row " + std::to_string(wrong.row) + " asks for image " +
                              std::to_string(wrong.value) + ", the store holds 0 to " + std::to_string(n_images - 1));
}

// For the ops that run on both: device -1 is the CPU, otherwise `stream` is a cudaStream_t of that device.
void require_cuda([[maybe_unused]] const char* op) {
#if !defined(FIG_WITH_CUDA)
    throw std::runtime_error(std::string(op) + ": the extension was built without nvcc");
#endif
}

void pack_codes(const Layout& layout, Address noise, int noise_dtype, int64_t noise_stride, Address categories,
                Address continuous, int continuous_dtype, int64_t continuous_stride, int64_t rows, int dtype, Address z,
                int64_t code, Address values, int64_t n_values, int threads, int device,
                [[maybe_unused]] Address stream) {
    const fig::PackCodes op{layout.view(),
                            strided(noise, noise_dtype, rows, noise_stride),
                            at<const int64_t>(categories),
                            strided(continuous, continuous_dtype, rows, continuous_stride),
                            rows,
                            Dtype(dtype),
                            at<void>(z),
                            code,
                            at<const float>(values),
                            n_values,
                            threads};
    if (device >= 0) {
        require_cuda("pack_codes");
#if defined(FIG_WITH_CUDA)
        const py::gil_scoped_release release;
        fig::cuda_pack_codes(op, {device, stream});
#endif
        return;
    }
    OutOfRange wrong;
    {
        const py::gil_scoped_release release;
        wrong = cpu->pack_codes(op);
    }
    check_categories("pack_codes", layout.view(), wrong);
}

void unpack_codes(const Layout& layout, Address z, int dtype, int64_t rows, int64_t stride, Address categories,
                  int threads, int device, [[maybe_unused]] Address queue) {
    const fig::UnpackCodes op{layout.view(), strided(z, dtype, rows, stride), at<int64_t>(categories), threads};
    if (device >= 0) require_cuda("unpack_codes");
    const py::gil_scoped_release release;
#if defined(FIG_WITH_CUDA)
    if (device >= 0) return fig::cuda_unpack_codes(op, {device, queue});
#endif
    cpu->unpack_codes(op);
}

void recognize(const Layout& layout, Address recognition, int dtype, int64_t rows, int64_t stride, Address categories,
               Address confidence, Address mean, Address std, int threads, int device,
               [[maybe_unused]] Address queue) {
    const fig::Recognize op{layout.view(),         strided(recognition, dtype, rows, stride),
                            at<int64_t>(categories), at<float>(confidence),
                            at<float>(mean),       at<float>(std),
                            threads};
    if (device >= 0) require_cuda("recognize");
    const py::gil_scoped_release release;
#if defined(FIG_WITH_CUDA)
    if (device >= 0) return fig::cuda_recognize(op, {device, queue});
#endif
    cpu->recognize(op);
}

// The layers: CPU only.

fig::Patches geometry(int64_t n, int64_t height, int64_t width, int64_t channels, int64_t small_height,
                      int64_t small_width, int64_t stride, int64_t before, int dtype, Address source, Address target,
                      int threads) {
    return {n,      height, width,        channels,               small_height,     small_width,
            stride, before, Dtype(dtype), at<const void>(source), at<void>(target), threads};
}

template <class... Arguments>
void patches(Arguments... arguments) {
    const py::gil_scoped_release release;
    cpu->patches(geometry(arguments...));
}

template <class... Arguments>
void fold(Arguments... arguments) {
    const py::gil_scoped_release release;
    cpu->fold(geometry(arguments...));
}

void transpose(int64_t rows, int64_t columns, Address source, Address target, int threads) {
    const py::gil_scoped_release release;
    cpu->transpose({rows, columns, at<const uint16_t>(source), at<uint16_t>(target), threads});
}

fig::NormAct norm_act_of(int64_t groups, int64_t rows, int64_t columns, float eps, float slope, int dtype, Address x,
                         Address gain, Address bias, Address y, Address mean, Address variance, int threads) {
    return {groups,
            rows,
            columns,
            gain != 0,
            eps,
            slope,
            Dtype(dtype),
            at<const void>(x),
            at<const float>(gain),
            at<const float>(bias),
            at<void>(y),
            at<float>(mean),
            at<float>(variance),
            threads,
            nullptr};
}

void norm_act(int64_t groups, int64_t rows, int64_t columns, float eps, float slope, int dtype, Address x, Address gain,
              Address bias, Address y, Address mean, Address variance, int threads) {
    const py::gil_scoped_release release;
    fig::NormAct op =
        norm_act_of(groups, rows, columns, eps, slope, dtype, x, gain, bias, y, mean, variance, threads);
    const auto memory = scratch<float>(cpu->norm_act_scratch(op));
    op.scratch = memory.get();
    cpu->norm_act(op);
}

void norm_act_backward(int64_t groups, int64_t rows, int64_t columns, float eps, float slope, int dtype, Address x,
                       Address gain, Address bias, Address mean, Address variance, Address y_gradient,
                       Address x_gradient, Address gain_gradient, Address bias_gradient, int threads) {
    const py::gil_scoped_release release;
    fig::NormActBackward op{
        norm_act_of(groups, rows, columns, eps, slope, dtype, x, gain, bias, 0, mean, variance, threads),
        at<const void>(y_gradient), at<void>(x_gradient), at<float>(gain_gradient), at<float>(bias_gradient)};
    const auto memory = scratch<float>(cpu->norm_act_scratch(op.forward));
    op.forward.scratch = memory.get();
    cpu->norm_act_backward(op);
}

template <class T>
std::vector<T*> all_at(const std::vector<Address>& addresses) {
    std::vector<T*> pointers;
    for (const Address address : addresses) pointers.push_back(at<T>(address));
    return pointers;
}

void adam(const std::vector<int64_t>& sizes, const std::vector<Address>& weights, const std::vector<Address>& gradients,
          const std::vector<int>& gradient_dtypes, const std::vector<Address>& first_moments,
          const std::vector<Address>& second_moments, const std::vector<Address>& copies,
          const std::vector<Address>& steps, Address learning_rate, double beta1, double beta2, double eps, int threads) {
    const py::gil_scoped_release release;
    const auto weight = all_at<float>(weights), first = all_at<float>(first_moments);
    const auto second = all_at<float>(second_moments), step = all_at<float>(steps);
    const auto gradient = all_at<const void>(gradients);
    const auto copy = all_at<uint16_t>(copies);
    std::vector<Dtype> dtypes;
    for (const int dtype : gradient_dtypes) dtypes.push_back(Dtype(dtype));
    cpu->adam({int64_t(sizes.size()), sizes.data(), weight.data(), gradient.data(), dtypes.data(), first.data(),
               second.data(), copy.data(), step.data(), *at<const double>(learning_rate), beta1, beta2, eps,
               threads});
}

// glibc gives tensors of more than a few megabytes back to the system when they are freed, and gets them anew, page by
// page and zeroed, in the next iteration: a quarter of MNIST's bfloat16 iteration. For the whole process, from now on.
void keep_freed_memory() {
#if defined(__GLIBC__)
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
#endif
}

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "The ops of fastinfogan in C++ and CUDA; called through fastinfogan.ops.native.";
    py::class_<Layout>(module, "Layout", "Where the columns of one specification lie.")
        .def(py::init<int64_t, bool, std::vector<int64_t>, const std::vector<bool>&, std::vector<double>>());

    // Counted up with every change of what native.py passes or asks for; it takes no other.
    module.attr("interface") = 1;
    module.attr("compiler") = compiler();
    module.attr("cuda_archs") = FIG_CUDA_ARCHS;
#if defined(FIG_WITH_CUDA)
    module.attr("built_with_cuda") = true;
#else
    module.attr("built_with_cuda") = false;
#endif
    module.attr("isas") = py::tuple(py::cast(supported_isas()));
    module.def("isa", [] { return std::string(cpu->isa); }, "The instruction set in use.");
    module.def("use_isa", &use_isa, "Use another of `isas`; all give the same bits.");

    module.def("processor_is_intel", &processor_is_intel);

    module.def("sample_latents", &sample_latents);
    module.def("head_loss", &head_loss);
    module.def("image_batch", &image_batch);
    module.def("pack_codes", &pack_codes);
    module.def("unpack_codes", &unpack_codes);
    module.def("recognize", &recognize);
    module.def("patches", &patches<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, Address,
                                   Address, int>);
    module.def("fold", &fold<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, Address,
                             Address, int>);
    module.def("transpose", &transpose);
    module.def("norm_act", &norm_act);
    module.def("norm_act_backward", &norm_act_backward);
    module.def("adam", &adam);
    module.def("keep_freed_memory", &keep_freed_memory);
}

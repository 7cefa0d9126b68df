// A second device for torch, for tests: its memory is the host's, and so is every kernel, but its tensors are of another
// device, and an operation that is given tensors of both fails as it would on an accelerator.
//
// A kernel is the one of the CPU on tensors over the same memory. Only what torch has no CPU kernel to borrow for (to
// allocate, to view, to copy to and fro, to convolve) is written here. See "PrivateUse1" in torch's documentation.
#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <cstdlib>
#include <utility>
#include <vector>

namespace {

using at::Tensor;
constexpr auto FAR = c10::DeviceType::PrivateUse1;
const c10::Device far_device(FAR, 0);

std::atomic<int64_t> kernels{0};

struct Guard final : c10::impl::NoOpDeviceGuardImpl<FAR> {
  c10::Device exchangeDevice(c10::Device) const override { return far_device; }
  c10::Device getDevice() const override { return far_device; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, far_device); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(far_device); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? std::aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    return {data, data, &std::free, far_device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(FAR, &memory);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
};
Hooks hooks;

bool is_far(const Tensor& t) { return t.defined() && t.device().type() == FAR; }

// The same memory as a tensor of the CPU.
Tensor near(const Tensor& t) {
  auto options = t.options().device(at::kCPU);
  if (t.numel() == 0) return at::empty(t.sizes(), options);
  return at::from_blob(t.data_ptr(), t.sizes(), t.strides(), options);
}

Tensor far_over(c10::Storage storage, const Tensor& like, int64_t offset) {
  auto out = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), like.dtype());
  out.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), offset);
  return out;
}

using Pairs = std::vector<std::pair<Tensor, Tensor>>;  // tensor of the device, the same on the CPU

// What a kernel of the CPU made, on the device: one of its arguments, a view of one, or something new.
Tensor carried(const Tensor& made, const Pairs& given) {
  if (!made.defined()) return made;
  for (auto& [there, here] : given)
    if (here.unsafeGetTensorImpl() == made.unsafeGetTensorImpl()) return there;
  for (auto& [there, here] : given)
    if (here.numel() && made.numel() && here.storage().data() == made.storage().data()) {
      auto bytes = there.storage_offset() * there.itemsize() + made.storage_offset() * made.itemsize();
      return far_over(there.storage(), made, bytes / made.itemsize());
    }
  auto* kept = new Tensor(made);
  c10::DataPtr data(made.storage().mutable_data(), kept, [](void* t) { delete static_cast<Tensor*>(t); }, far_device);
  c10::Storage storage(c10::Storage::use_byte_size_t(), made.storage().nbytes(), std::move(data), &memory, true);
  return far_over(std::move(storage), made, made.storage_offset());
}

void refuse_mixture(const c10::OperatorHandle& op, const std::vector<Tensor>& given) {
  bool far = false, host = false;
  for (auto& t : given) {
    far |= is_far(t);
    host |= t.defined() && !is_far(t) && t.dim() > 0;
  }
  TORCH_CHECK(!(far && host), op.schema().name(), " was given tensors of the second device and of the CPU");
}

// Any operation: the kernel of the CPU over the same memory.
void borrowed(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  ++kernels;
  const auto& schema = op.schema();
  const auto count = schema.arguments().size();
  auto arguments = torch::jit::pop(*stack, count);
  std::vector<Tensor> given;
  bool far = false, placed = false;
  for (auto& value : arguments) {
    if (value.isTensor()) given.push_back(value.toTensor());
    if (value.isTensorList())
      for (const Tensor& t : value.toTensorVector()) given.push_back(t);
    if (value.isOptionalTensorList())
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        if (t) given.push_back(*t);
    if (value.isDevice()) placed = true, far = value.toDevice().type() == FAR;
  }
  refuse_mixture(op, given);
  if (!placed)
    for (auto& t : given) far |= is_far(t);
  Pairs pairs;
  auto lent = [&](const Tensor& t) {
    if (!is_far(t)) return t;
    pairs.emplace_back(t, near(t));
    return pairs.back().second;
  };
  for (size_t i = 0; i < count; i++) {
    auto& value = arguments[i];
    if (value.isTensor()) {
      value = lent(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(lent(t));
      value = list;
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
        list.push_back(t ? std::optional<Tensor>(lent(*t)) : t);
      value = list;
    } else if (value.isDevice() && value.toDevice().type() == FAR) {
      value = c10::Device(at::kCPU);
    }
    torch::jit::push(*stack, value);
  }
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  for (auto& [there, here] : pairs)  // an `out` that was empty and has grown
    if (there.numel() == 0 && here.numel() > 0) {
      at::native::resize_(there, here.sizes());
      near(there).copy_(here);
    }
  if (!far) return;
  auto results = torch::jit::pop(*stack, schema.returns().size());
  for (auto& value : results) {
    if (value.isTensor()) {
      value = carried(value.toTensor(), pairs);
    } else if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& t : value.toTensorVector()) list.push_back(carried(t, pairs));
      value = list;
    }
    torch::jit::push(*stack, value);
  }
}

Tensor empty(
    c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(
    c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dtype));
}

Tensor as_strided(
    const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> offset) {
  std::optional<int64_t> start;
  if (offset) start = offset->expect_int();
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}

Tensor& set_storage(
    Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return at::native::set_storage_cpu_(
      self, std::move(source), offset.expect_int(), C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
}

Tensor& set_whole_storage(Tensor& self, at::Storage source) { return at::native::set_(self, std::move(source)); }

Tensor& set_tensor(Tensor& self, const Tensor& source) { return at::native::set_tensor_(self, source); }

Tensor copy_from(const Tensor& from, const Tensor& to, bool) {
  (is_far(to) ? near(to) : to).copy_(is_far(from) ? near(from) : from);
  return to;
}

Tensor copy_from_and_resize(const Tensor& from, const Tensor& to) {
  at::native::resize_(to, from.sizes());
  return copy_from(from, to, false);
}

void one_device(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  bool alike = is_far(x) && is_far(weight) && (!bias || !bias->defined() || is_far(*bias));
  TORCH_CHECK(alike, "a convolution was given tensors of the second device and of the CPU");
}

Tensor convolution(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups) {
  one_device(x, weight, bias);
  ++kernels;
  std::optional<Tensor> shift;
  if (bias && bias->defined()) shift = near(*bias);
  return carried(
      at::convolution(
          near(x), near(weight), shift, stride, padding, dilation, transposed, output_padding, groups), {});
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  one_device(grad, weight, x);
  ++kernels;
  const int64_t outputs = transposed ? weight.size(1) * groups : weight.size(0);
  auto [to_x, to_weight, to_bias] = at::convolution_backward(
      near(grad), near(x), near(weight), at::IntArrayRef(outputs), stride, padding, dilation, transposed,
      output_padding, groups, mask);
  return {carried(to_x, {}), carried(to_weight, {}), carried(to_bias, {})};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&borrowed>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
}

int64_t kernels_run() { return kernels; }

TORCH_LIBRARY(second_device, m) { m.def("kernels() -> int", &kernels_run); }

const bool registered = [] {
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return true;
}();

}  // namespace

// foveate::_attention on the CPU: the softmax engine on tensors.
#pragma once
#include <foveate/attention_arguments.h>
#include <foveate/op.h>

namespace foveate::ops {

OutAndLse attention_cpu(const AttentionArguments& c);
Gradients attention_backward_cpu(const Backward& call, const AttentionArguments& c);

}  // namespace foveate::ops

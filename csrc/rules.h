// Every update rule, written once for every device, storage and dtype.
// A rule is a functor of floats: it *is* its hyper-parameters, and `direction` turns a parameter, its gradient and its
// states (updated in place) into u; the driver then does p -= lr * u. It must not know how its states are stored or
// where it runs.
//
// To add a rule: a struct below, its name in AllRules. Its Python half is torch_bnb/optim/rules.py, its proof
// tests/cases.py.
// A layer-wise rule also has `measured`, a number per element whose norm over the tensor it needs, and `with_norms`,
// which returns the rule for a tensor with that norm and that of the parameter.
//
//   kName     op and docs name
//   kScalars  the op's floats, in field order; numbers that depend on the step (bias corrections) come from Python
//   doubles kStates   one code map per state, in the order of `direction`'s state arguments
#pragma once
#include <algorithm>
#include <array>
#include <cstddef>
#include <utility>

#include "codec.h"

namespace bnb {
inline namespace BNB_ISA {

using Name = const char*;

BNB_HD float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : x; }                   // NaN stays NaN
BNB_HD float multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }  // rounded once
BNB_HD float lerp(float from, float to, float weight) { return multiply_add(weight, to - from, from); }
BNB_HD float larger(float x, float bound) { return x < bound ? bound : x; }  // a NaN in x stays
BNB_HD float square_root(float x) { return __builtin_sqrtf(x); }

// The common part of Adam and AdamW: moves both moments, returns the bias-corrected ratio.
BNB_HD float adam_ratio(float g, float& m, float& v, float one_minus_beta1, float beta2, float one_minus_beta2,
                        float eps, float debias1, float debias2_sqrt) {
  m = lerp(m, g, one_minus_beta1);
  v = multiply_add(beta2, v, one_minus_beta2 * g * g);
  return m * debias1 / multiply_add(square_root(v), debias2_sqrt, eps);
}

// Adam with L2 decay, https://arxiv.org/abs/1412.6980
struct Adam {
  static constexpr Name kName = "adam";
  static constexpr std::array kScalars{"lr",  "one_minus_beta1", "beta2",   "one_minus_beta2",
                                       "eps", "weight_decay",    "debias1", "debias2_sqrt"};
  static constexpr std::array kStates{Sign::kSigned, Sign::kUnsigned};
  float lr, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, debias1, debias2_sqrt;
  BNB_HD float direction(float p, float g, float& m, float& v) const {
    return adam_ratio(g + weight_decay * p, m, v, one_minus_beta1, beta2, one_minus_beta2, eps, debias1, debias2_sqrt);
  }
};

// AdamW: decay apart from the gradient, https://arxiv.org/abs/1711.05101
struct AdamW {
  static constexpr Name kName = "adamw";
  static constexpr std::array kScalars = Adam::kScalars;
  static constexpr std::array kStates = Adam::kStates;
  float lr, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay, debias1, debias2_sqrt;
  BNB_HD float direction(float p, float g, float& m, float& v) const {
    return multiply_add(weight_decay, p,
                        adam_ratio(g, m, v, one_minus_beta1, beta2, one_minus_beta2, eps, debias1, debias2_sqrt));
  }
};

// SGD with momentum, https://proceedings.mlr.press/v28/sutskever13.html, in torch's form: the buffer starts as the
// first gradient (buffer_decay 0 and gradient_weight 1 on that step), nesterov looks one buffer ahead.
struct SGD {
  static constexpr Name kName = "sgd";
  static constexpr std::array kScalars{"lr", "weight_decay", "buffer_decay", "gradient_weight", "nesterov_momentum"};
  static constexpr std::array kStates{Sign::kSigned};
  float lr, weight_decay, buffer_decay, gradient_weight, nesterov_momentum;  // nesterov_momentum: 0 is off
  BNB_HD float direction(float p, float g, float& buffer) const {
    g = g + weight_decay * p;
    buffer = buffer_decay * buffer + gradient_weight * g;
    return nesterov_momentum > 0 ? g + nesterov_momentum * buffer : buffer;
  }
};

// Lion, https://arxiv.org/abs/2302.06675
struct Lion {
  static constexpr Name kName = "lion";
  static constexpr std::array kScalars{"lr", "one_minus_beta1", "one_minus_beta2", "weight_decay"};
  static constexpr std::array kStates{Sign::kSigned};
  float lr, one_minus_beta1, one_minus_beta2, weight_decay;
  BNB_HD float direction(float p, float g, float& m) const {
    const float u = sign(lerp(m, g, one_minus_beta1)) + weight_decay * p;
    m = lerp(m, g, one_minus_beta2);
    return u;
  }
};

// RMSprop, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf, centred as in arXiv 1308.0850, in
// torch's form. Not centred: grad_avg_weight is 0, so that grad_avg stays 0. The variance is at least the share
// least_variance of the mean of squares: rounded to 8 bits, that can fall below the square of the mean.
struct RMSprop {
  static constexpr Name kName = "rmsprop";
  static constexpr std::array kScalars{"lr",  "alpha",        "one_minus_alpha", "grad_avg_weight",
                                       "eps", "weight_decay", "momentum",        "least_variance"};
  static constexpr std::array kStates{Sign::kUnsigned, Sign::kSigned, Sign::kSigned};
  float lr, alpha, one_minus_alpha, grad_avg_weight, eps, weight_decay, momentum, least_variance;
  BNB_HD float direction(float p, float g, float& square_avg, float& buffer, float& grad_avg) const {
    g = g + weight_decay * p;
    square_avg = alpha * square_avg + one_minus_alpha * g * g;
    grad_avg = lerp(grad_avg, g, grad_avg_weight);
    const float variance = larger(square_avg - grad_avg * grad_avg, least_variance * square_avg);
    buffer = momentum * buffer + g / (square_root(variance) + eps);
    return buffer;
  }
};

// Adagrad, https://jmlr.org/papers/v12/duchi11a.html; lr comes with its decay.
struct Adagrad {
  static constexpr Name kName = "adagrad";
  static constexpr std::array kScalars{"lr", "eps", "weight_decay"};
  static constexpr std::array kStates{Sign::kUnsigned};
  float lr, eps, weight_decay;
  BNB_HD float direction(float p, float g, float& sum) const {
    g = g + weight_decay * p;
    sum = sum + g * g;
    return g / (square_root(sum) + eps);
  }
};

// AdEMAMix, https://arxiv.org/abs/2409.03137: AdamW with a second, slow first moment; alpha and beta3 come scheduled.
struct AdEMAMix {
  static constexpr Name kName = "ademamix";
  static constexpr std::array kScalars{
      "lr",  "one_minus_beta1", "beta2",   "one_minus_beta2", "one_minus_beta3", "alpha",
      "eps", "weight_decay",    "debias1", "debias2_sqrt"};
  static constexpr std::array kStates{Sign::kSigned, Sign::kSigned, Sign::kUnsigned};
  float lr, one_minus_beta1, beta2, one_minus_beta2, one_minus_beta3, alpha, eps, weight_decay, debias1, debias2_sqrt;
  BNB_HD float direction(float p, float g, float& fast, float& slow, float& v) const {
    fast = lerp(fast, g, one_minus_beta1);
    slow = lerp(slow, g, one_minus_beta3);
    v = beta2 * v + one_minus_beta2 * g * g;
    return (fast * debias1 + alpha * slow) / (square_root(v) * debias2_sqrt + eps) + weight_decay * p;
  }
};

// LAMB, https://arxiv.org/abs/1904.00962: AdamW whose step is as long as the parameter, times lr.
struct LAMB : AdamW {
  static constexpr Name kName = "lamb";
  BNB_HD float measured(float p, float g, float m, float v) const { return direction(p, g, m, v); }
  BNB_HD LAMB with_norms(float param_norm, float direction_norm) const {
    LAMB rule = *this;
    if (param_norm > 0 && direction_norm > 0) rule.lr = lr * (param_norm / direction_norm);
    return rule;
  }
};

// LARS, https://arxiv.org/abs/1708.03888: SGD whose gradient is as long as the parameter, times trust_coefficient. The
// buffer holds no learning rate, as in SGD.
struct LARS {
  static constexpr Name kName = "lars";
  static constexpr std::array kScalars{"lr", "weight_decay", "momentum", "nesterov_momentum", "trust_coefficient",
                                       "eps"};
  static constexpr std::array kStates{Sign::kSigned};
  float lr, weight_decay, momentum, nesterov_momentum, trust_coefficient, eps;
  BNB_HD float direction(float p, float g, float& buffer) const {
    g = trust_coefficient * (g + weight_decay * p);
    buffer = momentum * buffer + g;
    return nesterov_momentum > 0 ? g + nesterov_momentum * buffer : buffer;
  }
  BNB_HD float measured(float, float g, float) const { return g; }
  BNB_HD LARS with_norms(float param_norm, float grad_norm) const {
    LARS rule = *this;
    const bool has_ratio = param_norm > 0 && grad_norm > 0;
    const float ratio = param_norm / (grad_norm + weight_decay * param_norm + eps);
    constexpr float kMost = 0x1.fffffep127f;  // a subnormal gradient's ratio would overflow
    rule.trust_coefficient = has_ratio ? trust_coefficient * (ratio < kMost ? ratio : kMost) : 1.0f;
    return rule;
  }
};

template <class... Rules>
struct RuleList {
  static constexpr std::size_t kCount = sizeof...(Rules);
  static constexpr std::size_t kMaxStates = std::max({Rules::kStates.size()...});
  static constexpr std::size_t kMaxScalars = std::max({Rules::kScalars.size()...});
};

using AllRules = RuleList<Adam, AdamW, SGD, Lion, RMSprop, Adagrad, AdEMAMix, LAMB, LARS>;

// A rule from its scalars, in the order of kScalars.
template <class Rule, std::size_t... I>
BNB_HD Rule make_rule(const float* scalars, std::index_sequence<I...>) {
  return Rule{scalars[I]...};
}

template <class Rule>
BNB_HD Rule make_rule(const float* scalars) {
  static_assert(sizeof(Rule) == sizeof(float) * Rule::kScalars.size(), "a rule has one float field per scalar");
  return make_rule<Rule>(scalars, std::make_index_sequence<Rule::kScalars.size()>{});
}

}  // namespace BNB_ISA
}  // namespace bnb

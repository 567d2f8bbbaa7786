// One-token steps of a decoder with a KV cache: the arithmetic of rollouts.
#pragma once
#include <cstdint>
#include <memory>
#include <span>

#include "csrc/model/decoder.h"
#include "csrc/model/mixer_decode.h"
#include "csrc/model/page_table.h"

namespace isentrope::model {

struct Logits {
  const float* data;  // [rows, ld]: the first V of each row; until the next step
  int64_t ld;
  const float* row(int64_t i) const { return data + i * ld; }
};

// A cache of some pages, the states of its sequences, and the memory to step it; used by one thread at a time.
class DecodeSession {
 public:
  virtual ~DecodeSession() = default;
  // Feeds rows and gives the logits that follow rows logits_from … (earlier rows of a prompt need none). Rows of the same
  // sequence stand in the order of their positions, and may be many: a prompt is fed so.
  // prefix: the rows are a sequence from its first token on, and all of its prefix (csrc/model/places.h).
  virtual Logits step(std::span<const DecodeRow> rows, int64_t logits_from, bool prefix = false) = 0;
  virtual PageTable& pages() = 0;
};

// A decoder made ready to decode: weights are packed once, and shared by the sessions. Good until the weights
// change.
class DecodeModel {
 public:
  virtual ~DecodeModel() = default;
  // rows: most rows of one step. history: a sequence may be forked at its last `history` lengths, the one it has among them; where
  // every layer keeps its positions in pages, at any.
  virtual std::unique_ptr<DecodeSession> session(int64_t pages, int64_t rows, int64_t history = 1) const = 0;
  // Rows that one step is best given, and whether sessions may run side by side, one a thread.
  virtual int64_t preferred_rows() const = 0;
  virtual bool parallel() const = 0;
  // Whether a prompt is to be fed in one step, as a prefix.
  virtual bool reads_prefix() const = 0;
};

// float on the CPU: own kernels, where a row's logits do not depend, bit for bit, on the rows it is stepped with, on the pages
// it has, or on threads. bfloat16: they keep matrices and cache in bfloat16 and compute in float; where the processor multiplies
// bfloat16 itself, a product's other operand is rounded to it too, and sums are float. Other types and devices:
// ATen and entropy_attention on tensors, which bfloat16 converts.
// Both throw std::invalid_argument for an encoder.
std::unique_ptr<DecodeModel> make_decode_model(const Decoder& decoder, bool bfloat16 = false);
std::unique_ptr<DecodeModel> make_aten_decode_model(const Decoder& decoder, bool bfloat16 = false);

}  // namespace isentrope::model

// One-token steps of a decoder with a KV cache: the arithmetic of rollouts.
#pragma once
#include <cstdint>
#include <memory>
#include <span>

#include "csrc/model/decoder.h"
#include "csrc/model/mixer_decode.h"
#include "csrc/model/page_table.h"
#include "csrc/model/prune.h"

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

  // Feeds a whole prompt, from the first token of a sequence on, whose pages have room for it; of a session with pruning it is pruned, and
  // the caller has said so beforehand: pages().shorten(sequence, pruning.dropped(…)). Tokens kHidden at its begin are embedded as the rows of
  // embeddings [P, C] in their places. → the logits behind its last token. kept: gets the places of the tokens that all layers read.
  Logits prefill(std::span<const int64_t> tokens, int64_t sequence, const Tensor& embeddings = {},
                 std::vector<int64_t>* kept = nullptr);
  // Of a session without pruning: feeds a prompt likewise → [layers] double, of each block the sum over the tokens of by.entropies() of what
  // enters it.
  Tensor matrix_entropies(std::span<const int64_t> tokens, int64_t sequence, const Pruning& by,
                          const Tensor& embeddings = {});

 protected:
  DecodeSession(int64_t layers, int64_t rows, const Pruning* pruning)
      : layer_count_(layers), rows_(rows), pruning_(pruning), cut_(pruning ? pruning->layer() : layers) {}
  // Blocks first … last − 1 of the stream x [n, C], n ≤ rows, in its place. They are all below cut_, or none is.
  virtual void blocks(std::span<const DecodeRow> rows, int64_t first, int64_t last, Tensor& x) = 0;
  virtual Tensor embedded(std::span<const int64_t> tokens) const = 0;  // [n, C]; zeros for kHidden
  virtual Logits head(const Tensor& x) = 0;                            // x [n, C] behind the last block

  const int64_t layer_count_, rows_;
  const Pruning* const pruning_;
  const int64_t cut_;  // the first block that reads kept tokens alone

 private:
  Tensor embedded(std::span<const int64_t> tokens, const Tensor& embeddings) const;
  // All rows through those blocks, as many at a time as a step takes.
  void pass(std::span<const DecodeRow> rows, int64_t first, int64_t last, const Tensor& stream);
};

// A decoder made ready to decode: weights are packed once, and shared by the sessions. Good until the weights
// change.
class DecodeModel {
 public:
  virtual ~DecodeModel() = default;
  // rows: most rows of one step. history: a sequence may be forked at its last `history` lengths, the one it has among them; where
  // every layer keeps its positions in pages, at any.
  // pruning: of every prompt; blocks from its layer on have `later_pages`.
  virtual std::unique_ptr<DecodeSession> session(int64_t pages, int64_t rows, int64_t history = 1,
                                                 const Pruning* pruning = nullptr, int64_t later_pages = 0) const = 0;
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

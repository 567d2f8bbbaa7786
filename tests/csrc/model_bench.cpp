// Times the decoder and the rollouts for scripts/benchmarks: key=value shapes on the command line, then one
// command a line on standard input and one JSON object a line on standard output, so that a script can time
// rivals in turn with it.
//
//   dump PATH           weights as raw float32, one after the other; prints their names and shapes
//   logits PATH         logits of the fixed token batch as raw float32
//   forward | update    one pass over [batch, length] tokens; update adds the backward pass of the mean cross-entropy and,
//                       with sigma=1 (learned spectral norms of all linear layers), the power step
//   sft                 a step of supervised learning as csrc/train/training_loop.cpp takes it: loss of every next token, gradients, their
//                       norm cut to 1, whether AdamW's update stays finite, the update; prints the loss before it
//   rollout             prompts · samples completions of min_tokens … new_tokens, stops of the vocabulary's last tokens end one;
//                       prints tokens and seconds
//   batches             the same completions, `rows` prompts at a time: the next begin when the last of these has ended
//   padded              as batches, where also those that have ended are computed until the last has, as in generate() loops
//   decode DTYPE        `prompts` sequences of `prompt` tokens, then new_tokens steps of one token each, in float32 or bfloat16; prints the
//                       tokens and seconds of the steps, and of the prompts (prefill_tokens, prefill_seconds), and the first
//                       logits after the first prompt
//   products            GFLOP/s of processor time of the three products of bfloat16 of a linear layer, [batch · length, width] by [mlp, width], with what is
//                       rounded and packed for them, and of torch's three of the same sizes, whose operands are bfloat16 already
//   draw PATH           no timing, for tests/python/test_sampling.py: PATH holds {"logits": […], "before": [tokens], "draws": n} and the
//                       keys of a SamplingConfig, its texts for kind bytes; prints how often each token is drawn by n even uniforms
//   share               with mixer natsl and softmax=25: biases of the routers, by bisection, with which that many percent of each head's tokens are
//                       softmax attention's; prints the least and the largest share
//   converse FOLDER, retrieve N   of conversations: tests/csrc/conversation_bench.h
//   gemm                the rate of a float product of 1024 × 1024 × 1024, the machine's limit
#include <ATen/Parallel.h>
#include <malloc.h>
#include <time.h>
#include <torch/types.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "csrc/model/bfloat16_training.h"
#include "csrc/model/decode.h"
#include "csrc/model/decoder.h"
#include "csrc/rl/rollout.h"
#include "csrc/rl/sample.h"
#include "csrc/rl/text_rules.h"
#include "csrc/train/block_cache.h"
#include "csrc/train/objective.h"
#include "csrc/train/optimizer.h"
#include "csrc/train/process.h"
#include "tests/csrc/conversation_bench.h"

namespace {

using isentrope::model::Decoder;
using isentrope::model::DecoderConfig;
using torch::Tensor;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Of this thread, which others on the machine do not lengthen as they do the clock's.
double processor_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

void write_floats(const std::string& path, const std::vector<Tensor>& tensors) {
  std::ofstream file(path, std::ios::binary);
  for (const Tensor& x : tensors) {
    const Tensor plain = x.detach().contiguous();
    file.write(static_cast<const char*>(plain.data_ptr()), plain.nbytes());
  }
}

struct Bench {
  std::map<std::string, int64_t> shape{
      {"layers", 3},      {"width", 64},   {"heads", 4},   {"kv_heads", 4}, {"mlp", 192},      {"vocabulary", 25},
      {"context", 64},    {"batch", 64},   {"length", 50}, {"prompts", 32}, {"samples", 8},    {"prompt", 16},
      {"new_tokens", 34}, {"threads", 1},  {"stops", 0},   {"sigma", 0},    {"min_tokens", 0}, {"rows", 24},
      {"tied", 0},        {"bfloat16", 0}, {"mixer", 0},   {"clusters", 8}, {"window", 32},    {"balanced", 0},
      {"causal", 1},      {"softmax", 0}};
  Decoder model{nullptr};
  Tensor tokens;  // [batch, length]
  std::vector<std::vector<int64_t>> prompts;
  std::map<std::string, std::unique_ptr<isentrope::model::DecodeModel>> decode_models;
  std::unique_ptr<isentrope::train::Objective> objective;
  std::unique_ptr<isentrope::train::Optimizer> optimizer;
  int64_t calls = 0;
  double unpadded = 0;  // seconds of what padded only looks at

  void make() {
    DecoderConfig config;
    config.num_hidden_layers = shape["layers"];
    config.hidden_size = shape["width"];
    config.num_attention_heads = shape["heads"];
    config.num_key_value_heads = shape["kv_heads"];
    config.intermediate_size = shape["mlp"];
    config.vocabulary = shape["vocabulary"];
    config.max_position_embeddings = shape["context"];
    config.tie_word_embeddings = shape["tied"] != 0;
    static const char* const kMixers[]{"softmax", "linear",        "normalized",   "gated_delta", "ssd",
                                       "routed",  "prefix_linear", "hierarchical", "natsl"};
    config.mixers = {kMixers[shape["mixer"]]};
    config.routed.assign = shape["balanced"] != 0 ? "balanced" : "argmax";
    config.routed.clusters = shape["clusters"];
    config.routed.window = config.routed.local_window = shape["window"];
    config.causal = shape["causal"] != 0;
    config.gated_delta.expand_v = config.ssd.expand_v = 1;
    if (shape["bfloat16"] != 0) config.compute = "bfloat16";
    if (shape["sigma"] != 0) config.sigma_reparam.layers = {"all"};
    model = Decoder(config, 1);
    const int64_t V = config.vocabulary;
    tokens =
        (torch::arange(shape["batch"] * shape["length"]) * 7919 % 104729 % V).view({shape["batch"], shape["length"]});
    for (int64_t i = 0; i < shape["prompts"]; ++i) {
      prompts.emplace_back();
      for (int64_t t = 0; t < shape["prompt"]; ++t) prompts.back().push_back((i * 31 + t * 17) % V);
    }
  }

  // Completions of prompts first … last − 1. padded: draws them, then as many tokens for each as the longest has, which alone
  // counts in time.
  int64_t draw(int64_t first, int64_t last, bool padded) {
    isentrope::rl::SamplingConfig sampling;
    sampling.max_new_tokens = shape["new_tokens"];
    sampling.min_new_tokens = shape["min_tokens"];
    std::vector<int64_t> stops;
    for (int64_t i = 0; i < shape["stops"]; ++i) stops.push_back(shape["vocabulary"] - 1 - i);
    const std::vector<std::vector<int64_t>> some(prompts.begin() + first, prompts.begin() + last);
    const isentrope::rl::RolloutKey key{.seed = 1, .step = calls, .first_prompt = first};
    const double start = now();
    int64_t count = 0, longest = 0;
    for (const auto& completion : isentrope::rl::rollout(model, some, shape["samples"], sampling, stops, key)) {
      count += completion.tokens.size();
      longest = std::max<int64_t>(longest, completion.tokens.size());
    }
    if (padded) {
      unpadded += now() - start;
      sampling.max_new_tokens = longest;
      isentrope::rl::rollout(model, some, shape["samples"], sampling, {}, key);
    }
    return count;
  }

  std::string decode(const std::string& dtype) {
    if (!decode_models.count(dtype))
      decode_models[dtype] = isentrope::model::make_decode_model(model, dtype == "bfloat16");
    const auto P = static_cast<int64_t>(prompts.size()), T = shape["prompt"], steps = shape["new_tokens"];
    const auto session = decode_models[dtype]->session(P * isentrope::model::pages_of(T + steps), std::max(P, T));
    isentrope::model::PageTable& pages = session->pages();
    std::vector<int64_t> sequences;
    std::vector<float> logits;  // the first of the first prompt
    double prefill = -now();
    for (const std::vector<int64_t>& prompt : prompts) {
      sequences.push_back(pages.open());
      pages.extend(sequences.back(), T + steps);
      std::vector<isentrope::model::DecodeRow> rows;
      for (int64_t t = 0; t < T; ++t) rows.push_back({prompt[t], t, sequences.back()});
      const isentrope::model::Logits found = session->step(rows, T - 1);
      if (logits.empty()) logits.assign(found.row(0), found.row(0) + std::min<int64_t>(shape["vocabulary"], 64));
    }
    prefill += now();
    double seconds = -now();
    for (int64_t t = 0; t < steps; ++t) {
      std::vector<isentrope::model::DecodeRow> rows;
      for (int64_t i = 0; i < P; ++i) rows.push_back({(i * 31 + t * 7) % shape["vocabulary"], T + t, sequences[i]});
      session->step(rows, 0);
    }
    seconds += now();
    std::ostringstream out;
    out << "{\"tokens\": " << P * steps << ", \"seconds\": " << seconds << ", \"prefill_tokens\": " << P * T
        << ", \"prefill_seconds\": " << prefill << ", \"logits\": [";
    for (size_t i = 0; i < logits.size(); ++i) out << (i > 0 ? ", " : "") << logits[i];
    out << "]}";
    return out.str();
  }

  std::string share() {
    const double wanted = static_cast<double>(shape["softmax"]) / 100;
    Tensor found;
    for (size_t layer = 0; layer < model->layers().size(); ++layer) {
      auto& mixer = *model->layers()[layer].mixer;
      Tensor bias;
      for (const auto& weight : mixer.others())
        if (weight.name == "self_attn.route_proj.bias") bias = weight.tensor->detach().view({-1, 2}).select(1, 0);
      Tensor low = torch::full_like(bias, -8), high = torch::full_like(bias, 8);
      for (int i = 0; i < 16; ++i) {
        bias.copy_((low + high) / 2);
        model->forget_seen();
        model(tokens);
        model->take_seen([](Tensor&) {});
        const Tensor more = mixer.softmax_share() < wanted;
        low = torch::where(more, bias, low), high = torch::where(more, high, bias);
      }
      const Tensor shares = mixer.softmax_share();
      found = found.defined() ? torch::cat({found, shares}) : shares;
    }
    std::ostringstream out;
    out << "{\"least\": " << found.min().item<double>() << ", \"most\": " << found.max().item<double>() << "}";
    return out.str();
  }

  double sft() {
    namespace train = isentrope::train;
    if (!objective) {
      std::vector<std::pair<std::string, Tensor>> parameters;
      for (const auto& parameter : model->named_parameters())
        parameters.emplace_back(parameter.key(), parameter.value());
      train::ObjectiveConfig kind;
      kind.kind = "sft";
      objective = train::make_objective(kind, {}, model, 1.0, std::nullopt);
      train::OptimizerConfig adamw;
      adamw.max_grad_norm = 1;
      optimizer = std::make_unique<train::Optimizer>(adamw, parameters, std::map<std::string, std::vector<int64_t>>());
    }
    isentrope::data::Batch batch;
    batch.tokens = tokens;
    batch.target =
        torch::cat({tokens.slice(1, 1), torch::full_like(tokens.slice(1, 0, 1), isentrope::data::kIgnore)}, 1);
    optimizer->zero_grad();
    const auto stats = objective->backward(model, batch, 1, nullptr);
    optimizer->ask(1e-5, /*bounded=*/true);
    optimizer->apply();
    return stats.at("loss");
  }

  std::string products() const {
    namespace model = isentrope::model;
    const int64_t N = shape.at("batch") * shape.at("length"), K = shape.at("width"), M = shape.at("mlp");
    const Tensor x = torch::randn({N, K}), w = torch::randn({M, K}), dy = torch::randn({N, M});
    const Tensor xb = x.to(torch::kBFloat16), wb = w.to(torch::kBFloat16), dyb = dy.to(torch::kBFloat16);
    model::Bfloat16Copy copy;
    Tensor operand = model::bfloat16_operand(x), doperand = model::bfloat16_operand(dy);
    const auto forward = copy.for_output(w, {}), backward = copy.for_gradient(w, {});
    std::map<std::string, double> best;
    const auto time = [&](const std::string& name, const auto& f) {
      for (int i = 0; i < 9; ++i) {
        const double start = processor_seconds();
        f();
        const double taken = processor_seconds() - start;
        best[name] = i == 0 ? taken : std::min(best[name], taken);
      }
    };
    time("round", [&] { operand = model::bfloat16_operand(x); });
    time("dround", [&] { doperand = model::bfloat16_operand(dy); });
    time("y", [&] { model::bfloat16_product_with(operand, *forward); });
    time("dx", [&] { model::bfloat16_product_with(doperand, *backward); });
    time("dw", [&] { model::bfloat16_weight_gradient(doperand, operand, M, K); });
    time("pack", [&] { model::Bfloat16Copy().for_output(w, {}); });
    time("dpack", [&] { model::Bfloat16Copy().for_gradient(w, {}); });
    time("torch_y", [&] { at::linear(xb, wb); });
    time("torch_dx", [&] { at::mm(dyb, wb); });
    time("torch_dw", [&] { at::mm(dyb.t(), xb); });
    const double flop = 2e-9 * static_cast<double>(N * K * M);
    std::ostringstream out;
    out << "{";
    for (const auto& [name, seconds] : best)
      out << (out.tellp() > 1 ? ", \"" : "\"") << name << "\": " << flop / seconds;
    out << "}";
    return out.str();
  }

  static std::string draws(const std::string& path) {
    namespace rl = isentrope::rl;
    std::ifstream file(path);
    const nlohmann::json json = nlohmann::json::parse(file);
    const auto logits = json.at("logits").get<std::vector<float>>();
    const auto before = json.value("before", std::vector<int64_t>());
    rl::SamplingConfig sampling{.temperature = json.value("temperature", 1.0),
                                .top_k = json.value("top_k", int64_t{0}),
                                .top_p = json.value("top_p", 1.0),
                                .min_p = json.value("min_p", 0.0),
                                .repetition_penalty = json.value("repetition_penalty", 1.0),
                                .bad_words = json.value("bad_words", std::vector<std::string>())};
    sampling = rl::with_rules(sampling, isentrope::data::Tokenizer({.kind = "bytes"}));
    std::vector<int64_t> forbidden, counts(logits.size());
    if (sampling.rules) sampling.rules->forbid(before, forbidden);
    rl::Sampler sampler(sampling, static_cast<int64_t>(logits.size()));
    const auto n = json.at("draws").get<int64_t>();
    for (int64_t i = 0; i < n; ++i)
      ++counts[sampler.draw(logits.data(), (static_cast<double>(i) + 0.5) / static_cast<double>(n), forbidden, before)
                   .token];
    return nlohmann::json(counts).dump();
  }

  std::string run(const std::string& command, const std::string& path) {
    std::ostringstream out;
    const double start = now();
    if (command == "dump") {
      std::vector<Tensor> weights;
      out << "{\"weights\": [";
      for (const auto& [name, weight] : model->named_weights()) {
        out << (weights.empty() ? "" : ", ") << "[\"" << name << "\", [" << weight.size(0);
        for (int64_t i = 1; i < weight.dim(); ++i) out << ", " << weight.size(i);
        out << "]]";
        weights.push_back(weight);
      }
      write_floats(path, weights);
      out << "]}";
      return out.str();
    }
    if (command == "logits") {
      torch::NoGradGuard no_grad;
      write_floats(path, {model(tokens)});
      return "{}";
    }
    if (command == "forward") {
      torch::NoGradGuard no_grad;
      model(tokens);
    } else if (command == "update") {
      model->zero_grad(true);
      const Tensor logits = model(tokens).slice(1, 0, -1).reshape({-1, shape["vocabulary"]});
      torch::cross_entropy_loss(logits, tokens.slice(1, 1).reshape({-1})).backward();
      model->power_step();
    } else if (command == "sft") {
      const double loss = sft();
      out << "{\"loss\": " << loss << ", \"seconds\": " << now() - start << "}";
      return out.str();
    } else if (command == "rollout" || command == "batches" || command == "padded") {
      const auto P = static_cast<int64_t>(prompts.size()), rows = command == "rollout" ? P : shape["rows"];
      if (command == "rollout") ++calls;  // the others repeat its draws
      int64_t count = 0;
      for (int64_t first = 0; first < P; first += rows)
        count += draw(first, std::min(first + rows, P), command == "padded");
      out << "{\"tokens\": " << count << ", \"seconds\": " << now() - start - unpadded << "}";
      unpadded = 0;
      return out.str();
    } else if (command == "decode") {
      return decode(path);
    } else if (command == "draw") {
      return draws(path);
    } else if (command == "products") {
      return products();
    } else if (command == "share") {
      return share();
    } else if (command == "converse") {
      return isentrope::bench::converse(path);
    } else if (command == "retrieve") {
      return isentrope::bench::retrieve(std::stoll(path));
    } else if (command == "gemm") {
      const Tensor a = torch::ones({1024, 1024}), b = torch::ones({1024, 1024});
      const double from = now();
      torch::mm(a, b);
      out << "{\"gflops\": " << 2 * 1.024 * 1.024 * 1.024 / (now() - from) << "}";
      return out.str();
    } else {
      return "{\"error\": \"unknown command " + command + "\"}";
    }
    out << "{\"tokens\": " << tokens.numel() << ", \"seconds\": " << now() - start << "}";
    return out.str();
  }
};

}  // namespace

int main(int argc, char** argv) {
  isentrope::train::begin_process();
  isentrope::train::keep_tensor_memory();
  Bench bench;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (equals == std::string::npos || !bench.shape.count(argument.substr(0, equals))) {
      std::cerr << "model_bench: " << argument << " is no shape; wanted key=value with one of";
      for (const auto& [name, value] : bench.shape) std::cerr << " " << name << "=" << value;
      std::cerr << "\n";
      return 2;
    }
    bench.shape[argument.substr(0, equals)] = std::stoll(argument.substr(equals + 1));
  }
  at::set_num_threads(bench.shape["threads"]);
  // glibc returns large freed blocks to the system, and every step would pay their page faults again.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  bench.make();
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string command, path;
    words >> command >> path;
    std::cout << bench.run(command, path) << std::endl;
  }
}

#include "csrc/train/distributed.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>

#include "csrc/message.h"

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef ISENTROPE_NCCL
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

namespace isentrope::train {

using torch::Tensor;

namespace {

std::string variable(const char* name) {
  const char* text = std::getenv(name);
  return text ? text : "";
}

int64_t number(const char* name, int64_t least) {
  const std::string text = variable(name);
  char* end = nullptr;
  const int64_t value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end || value < least)
    throw std::runtime_error(std::string(name) + " is '" + printable(text) + "', and WORLD_SIZE is " +
                             variable("WORLD_SIZE") + "; wanted a number from " + std::to_string(least) +
                             " on. torchrun sets it: torchrun --no-python --nproc-per-node 2 isentrope train …");
  return value;
}

bool one_rank() {
  const std::string size = variable("WORLD_SIZE");
  return size.empty() || size == "1";
}

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
using Work = c10::intrusive_ptr<c10d::Work>;

// While a verb waits, it looks this often whether another rank has given up; and that long it waits for what the others say of
// themselves before it names those who say nothing.
constexpr milliseconds kLook{500}, kGrace{3000};

std::string without_trace(const std::string& text) {
  std::string line = text.substr(0, text.find('\n'));
  if (const size_t at = line.find("Exception raised from"); at != std::string::npos) line.resize(at);
  return line;
}

std::vector<uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }

c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                                milliseconds timeout) {
  using Gloo = c10d::ProcessGroupGloo;
  auto options = Gloo::Options::create(timeout);
  std::string names = variable("GLOO_SOCKET_IFNAME");  // as torch reads it: a list
  while (!names.empty()) {
    const size_t comma = names.find(',');
    options->devices.push_back(Gloo::createDeviceForInterface(names.substr(0, comma)));
    names = comma == std::string::npos ? "" : names.substr(comma + 1);
  }
  if (options->devices.empty()) options->devices.push_back(Gloo::createDefaultDevice());
  options->threads = static_cast<int>(options->devices.size()) * 2;  // torch's number
  return c10::make_intrusive<Gloo>(store, rank, size, options);
}

// How many numbers the word at the beginning of a verb carries: those of a step's statistics, and a message of 64 bytes.
constexpr int64_t kCarried = 6;

// A number of 20 bits, of which so many can be added up as there may be ranks.
double place_of(const char* text) {
  uint32_t hash = 2166136261u;  // FNV-1a
  for (; *text; ++text) hash = (hash ^ static_cast<uint8_t>(*text)) * 16777619u;
  return static_cast<double>((hash >> 12) + 1);
}

}  // namespace

Ranks::Ranks() = default;

struct Ranks::Group {
  int64_t rank, size;
  milliseconds timeout;
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::Backend> cpu, gpu;
  int64_t sent = 0, queues = 0, depth = 0;
  std::string broken;  // why no verb works any more
  bool told = false;   // a failure is known to all ranks; until the outermost together() has ended

  c10d::Backend& of(const Tensor& x) {
    if (x.is_cpu()) return *cpu;
    if (!gpu)
      throw std::runtime_error(
          "this build exchanges tensors of the CPU alone (isentrope version: ranks); write "
          "run.device: cpu");
    return *gpu;
  }

  void wait(const Work& work, const char* what) {
    const auto end = Clock::now() + timeout + kLook;
    for (;;) try {
        work->wait(kLook);
        return;
      } catch (const std::exception& error) {
        const bool goes_on = !work->isCompleted() && Clock::now() < end;
        if (!goes_on || somebody_left()) fail(what, without_trace(error.what()));
      }
  }

  bool somebody_left() {
    try {
      return store->check({"left"});
    } catch (const std::exception&) {
      return true;
    }
  }

  // A verb cannot be completed. Names the ranks that are not there, so that a person knows whose log to read.
  [[noreturn]] void fail(const std::string& what, const std::string& why) {
    std::string missing, places = "every rank has left, the first for: " + why;
    const auto has = [&](const char* key, int64_t r) { return store->check({key + std::to_string(r)}); };
    try {
      store->set("left", bytes(std::to_string(rank)));
      store->set("left/" + std::to_string(rank), bytes(what));
      const auto end = Clock::now() + std::min(kGrace, timeout);
      for (int64_t other = 0; other < size; ++other) {
        while (!has("left/", other) && Clock::now() < end) std::this_thread::sleep_for(milliseconds(20));
        if (!has("left/", other)) missing.append(missing.empty() ? "" : ", ").append(std::to_string(other));
      }
      store->set("looked/" + std::to_string(rank), bytes(what));
      for (int64_t other = 0; rank == 0 && other < size; ++other)  // with the store, behind who has come
        while (has("left/", other) && !has("looked/", other) && Clock::now() < end + kGrace)
          std::this_thread::sleep_for(milliseconds(20));
      if (!missing.empty())
        places = "rank " + missing +
                 " did not come. It has died or hangs; its own text is in <run.dir>/ranks, or of rank 0 on the console";
    } catch (const std::exception&) {
      places = "nor is the store of " + variable("MASTER_ADDR") + ":" + variable("MASTER_PORT") + " there any more";
    }
    broken = "'" + what + "' could not be completed by all " + std::to_string(size) + " ranks (run.timeout_s is " +
             std::to_string(timeout.count() / 1000) + "): " + places;
    throw std::runtime_error(broken);
  }

  template <class Start>
  void run(const char* what, Start start) {
    Work work;
    try {
      work = start();
    } catch (const std::exception& error) {
      fail(what, without_trace(error.what()));
    }
    wait(work, what);
  }

  void reduce(Tensor& x, c10d::ReduceOp op, const char* what) {
    TORCH_CHECK(x.is_contiguous(), "ranks: ", what, ": a tensor that is not contiguous");  // Gloo does not look
    std::vector<Tensor> many{x};
    c10d::AllreduceOptions options;
    options.reduceOp = std::move(op);
    run(what, [&] { return of(x).allreduce(many, options); });
    sent += 2 * (size - 1) * static_cast<int64_t>(x.nbytes()) / size;
  }

  // [bytes] of each rank.
  std::vector<Tensor> gather(const Tensor& own, const char* what) {
    Tensor sizes = torch::zeros({size}, torch::kInt64);
    sizes[rank] = own.numel();
    reduce(sizes, c10d::ReduceOp::SUM, what);
    const int64_t longest = sizes.max().item<int64_t>();
    std::vector<Tensor> in{torch::zeros({longest}, torch::kUInt8)};
    in[0].slice(0, 0, own.numel()).copy_(own);
    std::vector<std::vector<Tensor>> out(1);
    for (int64_t r = 0; r < size; ++r) out[0].push_back(torch::empty({longest}, torch::kUInt8));
    if (longest > 0) run(what, [&] { return cpu->allgather(out, in); });
    sent += (size - 1) * longest;
    for (int64_t r = 0; r < size; ++r) out[0][r] = out[0][r].slice(0, 0, sizes[r].item<int64_t>());
    return out[0];
  }

  std::vector<std::string> gather(const std::string& own, const char* what) {
    const auto size = static_cast<int64_t>(own.size());
    std::vector<std::string> texts;
    for (const Tensor& one : gather(torch::from_blob(const_cast<char*>(own.data()), {size}, torch::kUInt8), what))
      texts.emplace_back(reinterpret_cast<const char*>(one.const_data_ptr<uint8_t>()), one.numel());
    return texts;
  }

  // The word that every verb begins with: [2 + kCarried], whether a rank has failed, the place of the verb, and numbers that are added up.
  // failed: the text of this rank's failure, or "".
  void begin(const char* what, std::vector<double>* numbers = nullptr, const std::string* failed = nullptr) {
    if (!broken.empty()) throw std::runtime_error(broken);
    const double place = failed ? 0 : place_of(what);
    Tensor word = torch::zeros({2 + kCarried}, torch::kFloat64);
    auto* x = word.data_ptr<double>();
    x[0] = failed != nullptr;
    x[1] = place;
    if (numbers) std::copy(numbers->begin(), numbers->end(), x + 2);
    reduce(word, c10d::ReduceOp::SUM, what);
    if (x[0] == 0 && x[1] == place * static_cast<double>(size)) {
      if (numbers) std::copy(x + 2, x + 2 + numbers->size(), numbers->begin());
      return;
    }
    const auto texts = gather((failed ? "!" + *failed : std::string("?") + what), what);
    told = true;
    std::string all;
    for (int64_t r = 0; r < size; ++r) {
      if (x[0] > 0 && texts[r].starts_with("!") && !failed)
        throw StoppedByRank("rank " + std::to_string(r) + ": " + texts[r].substr(1));
      all += (r ? ", rank " : "rank ") + std::to_string(r) + " at '" + texts[r].substr(1) + "'";
    }
    if (!failed) throw std::logic_error("the ranks are not at the same place: " + all);
  }
};

std::string Ranks::build() {
#ifdef ISENTROPE_NCCL
  return "Gloo and NCCL";
#else
  return "Gloo";
#endif
}

std::shared_ptr<Ranks> Ranks::of_environment(double timeout_s, [[maybe_unused]] bool gpu) {
  auto ranks = std::make_shared<Ranks>();
  if (one_rank()) return ranks;
  ranks->size_ = number("WORLD_SIZE", 1);
  ranks->rank_ = number("RANK", 0);
  const int64_t port = number("MASTER_PORT", 1);
  const std::string host = variable("MASTER_ADDR");
  if (host.empty())
    throw std::runtime_error("WORLD_SIZE is " + std::to_string(ranks->size_) +
                             ", and MASTER_ADDR is not set; torchrun sets it, or give the address of rank 0");
  if (ranks->rank_ >= ranks->size_)
    throw std::runtime_error("RANK is " + std::to_string(ranks->rank_) + ", and WORLD_SIZE is " +
                             std::to_string(ranks->size_) + "; ranks count from 0");
  const milliseconds timeout(static_cast<int64_t>(timeout_s * 1000));
  const std::string place = host + ":" + std::to_string(port);

  // As torch's env://: the store is torchrun's, or rank 0 has it.
  const bool agent = variable("TORCHELASTIC_USE_AGENT_STORE") == "True";
  c10d::TCPStoreOptions options;
  options.port = static_cast<uint16_t>(port);
  options.isServer = !agent && ranks->first();
  options.waitWorkers = false;
  options.timeout = timeout;
  c10::intrusive_ptr<c10d::Store> store;
  try {
    store = c10::make_intrusive<c10d::TCPStore>(host, options);
  } catch (const std::exception& error) {
    const std::string why = without_trace(error.what());
    if (options.isServer)
      throw std::runtime_error("ranks: the port of " + place +
                               " cannot be listened at (is it in use?); take another: " +
                               "torchrun --master-port PORT …, or MASTER_PORT=PORT. " + why);
    throw std::runtime_error("ranks: rank 0 cannot be reached at " + place + " within run.timeout_s; " + why);
  }
  store = c10::make_intrusive<c10d::PrefixStore>(
      "isentrope/" + variable("TORCHELASTIC_RUN_ID") + "/" + variable("TORCHELASTIC_RESTART_COUNT"), store);
  std::vector<std::string> keys;
  for (int64_t r = 0; r < ranks->size_; ++r) keys.push_back("here/" + std::to_string(r));
  store->set(keys[ranks->rank_], bytes("here"));
  try {
    store->wait(keys, timeout);
  } catch (const std::exception&) {
    std::string missing;
    for (int64_t r = 0; r < ranks->size_; ++r) try {
        if (!store->check({keys[r]})) missing += (missing.empty() ? "" : ", ") + std::to_string(r);
      } catch (const std::exception&) {
        missing = "0, which has the store,";
        break;
      }
    throw std::runtime_error("ranks: rank " + missing + " of " + std::to_string(ranks->size_) + " did not come to " +
                             place + " within run.timeout_s (" + std::to_string(timeout.count() / 1000) + ")");
  }
  ranks->group_ =
      std::make_unique<Group>(Group{ranks->rank_, ranks->size_, timeout, store, {}, {}, 0, 0, 0, {}, false});
  Group& group = *ranks->group_;
  const int rank = static_cast<int>(group.rank), size = static_cast<int>(group.size);
  try {
    group.cpu = gloo(c10::make_intrusive<c10d::PrefixStore>("gloo", store), rank, size, timeout);
  } catch (const std::exception& error) {
    group.fail("connection of the ranks", without_trace(error.what()));
  }
#ifdef ISENTROPE_NCCL
  if (gpu) {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = timeout;
    group.gpu = c10::make_intrusive<c10d::ProcessGroupNCCL>(c10::make_intrusive<c10d::PrefixStore>("nccl", store), rank,
                                                            size, options);
  }
#endif
  return ranks;
}

// ---- verbs --------------------------------------------------------------------------------------------------------

void Ranks::sum(Tensor& x) const {
  if (alone()) return;
  group_->begin("sum");
  group_->reduce(x, c10d::ReduceOp::SUM, "sum");
}

void Ranks::max(Tensor& x) const {
  if (alone()) return;
  group_->begin("max");
  group_->reduce(x, c10d::ReduceOp::MAX, "max");
}

Tensor Ranks::rows(const Tensor& own) const {
  if (alone()) return own;
  group_->begin("gather of rows");
  const Tensor plain = own.cpu().contiguous();
  std::vector<int64_t> shape = own.sizes().vec();
  std::vector<Tensor> parts;
  const int64_t row = plain.numel() > 0 ? static_cast<int64_t>(plain.nbytes()) / plain.size(0) : 0;
  auto* data = static_cast<uint8_t*>(plain.data_ptr());
  for (const Tensor& one : group_->gather(torch::from_blob(data, {static_cast<int64_t>(plain.nbytes())}, torch::kUInt8),
                                          "gather of rows")) {
    shape[0] = row > 0 ? one.numel() / row : 0;
    Tensor part = torch::empty(shape, plain.options());
    if (one.numel() > 0) std::memcpy(part.data_ptr(), one.const_data_ptr(), one.nbytes());
    if (one.numel() > 0) parts.push_back(part);
  }
  return parts.empty() ? own : torch::cat(parts).to(own.device());
}

std::vector<std::string> Ranks::gather(const std::string& own) const {
  if (alone()) return {own};
  group_->begin("gather");
  return group_->gather(own, "gather");
}

std::string Ranks::from_first(const std::string& text) const {
  if (alone()) return text;
  return gather(first() ? text : "")[0];
}

std::function<int64_t()> Ranks::queue() const {
  if (alone()) return Peers::queue();
  return [store = group_->store, key = "queue/" + std::to_string(group_->queues++)] { return store->add(key, 1) - 1; };
}

void Ranks::settle() const {
  if (!alone()) group_->begin("end of a stretch");
}

std::function<void()> Ranks::exchange(const Tensor& out, const Tensor& in, std::vector<int64_t> out_counts,
                                      std::vector<int64_t> in_counts) const {
  constexpr const char* kWhat = "exchange";
  Group& group = *group_;
  if (!group.broken.empty()) throw std::runtime_error(group.broken);
  for (int64_t r = 0; r < size_; ++r)
    if (r != rank_) group.sent += in_counts[r] * static_cast<int64_t>(in.element_size());
  struct Kept {
    Tensor out, in;
    std::vector<int64_t> out_counts, in_counts;
  };
  auto kept = std::make_shared<Kept>(Kept{out, in, std::move(out_counts), std::move(in_counts)});
  Work work;
  try {
    work = group.of(in).alltoall_base(kept->out, kept->in, kept->out_counts, kept->in_counts);
  } catch (const std::exception& error) {
    group.fail(kWhat, without_trace(error.what()));
  }
  return [&group, kept, work] { group.wait(work, kWhat); };
}

void Ranks::share(std::vector<Tensor>& parts) const {
  if (alone()) return;
  constexpr const char* kWhat = "gather of weights";
  group_->begin(kWhat);
  std::vector<Work> works;
  std::vector<std::vector<Tensor>> many;
  many.reserve(parts.size());
  for (int64_t r = 0; r < size_; ++r) {
    if (parts[r].numel() == 0) continue;
    many.push_back({parts[r]});
    c10d::BroadcastOptions options;
    options.rootRank = r;
    options.rootTensor = 0;
    try {
      works.push_back(group_->of(parts[r]).broadcast(many.back(), options));
    } catch (const std::exception& error) {
      group_->fail(kWhat, without_trace(error.what()));
    }
    const int64_t place = (rank_ - r + size_) % size_;  // in the tree whose root is 0
    for (int64_t step = 1; step < size_; step *= 2)
      if (place < step && place + step < size_) group_->sent += static_cast<int64_t>(parts[r].nbytes());
  }
  for (const Work& work : works) group_->wait(work, kWhat);
}

int64_t Ranks::bytes_sent() const { return group_ ? group_->sent : 0; }

bool Ranks::broken() const { return group_ && !group_->broken.empty(); }

// ---- failures -----------------------------------------------------------------------------------------------------

Ranks::Scope::Scope(const Ranks& ranks) : ranks_(ranks) { ++ranks_.group_->depth; }

Ranks::Scope::~Scope() {
  if (--ranks_.group_->depth == 0) ranks_.group_->told = false;
}

void Ranks::tell() const noexcept {
  if (alone() || group_->told || !group_->broken.empty()) return;
  try {
    const std::string text = message_of();
    group_->begin("end of a stretch", nullptr, &text);
  } catch (...) {  // the others learn it from their own verb
  }
}

Ranks::~Ranks() = default;

void Ranks::sum(std::vector<double>& x) const {
  if (alone()) return;
  if (static_cast<int64_t>(x.size()) <= kCarried) return group_->begin("sum of numbers", &x);
  Tensor tensor = torch::from_blob(x.data(), {static_cast<int64_t>(x.size())}, torch::kFloat64);
  sum(tensor);
}

double Ranks::sum(double x) const {
  std::vector<double> one{x};
  sum(one);
  return one[0];
}

int64_t Ranks::max(int64_t x) const {
  if (alone()) return x;
  Tensor one = torch::tensor({x}, torch::kInt64);
  max(one);
  return one.item<int64_t>();
}

void Ranks::barrier() const { settle(); }

}  // namespace isentrope::train

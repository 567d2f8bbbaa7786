// csrc/train/distributed.h where the build has no Gloo: one rank.
#include <cstdlib>

#include "csrc/train/distributed.h"

namespace isentrope::train {

using torch::Tensor;

struct Ranks::Group {};

std::string Ranks::build() { return "one (Gloo's headers were not there: libgloo-dev)"; }

std::shared_ptr<Ranks> Ranks::of_environment(double, bool) {
  const char* size = std::getenv("WORLD_SIZE");
  if (!size || !*size || size == std::string("1")) return std::make_shared<Ranks>();
  throw std::runtime_error("WORLD_SIZE is " + std::string(size) +
                           ", and this build runs one rank, since Gloo's headers were not there; install libgloo-dev "
                           "(gloo-devel) and build again: ./scripts/setup.sh does the first");
}

Ranks::Ranks() = default;
Ranks::~Ranks() = default;
void Ranks::sum(Tensor&) const {}
void Ranks::max(Tensor&) const {}
void Ranks::sum(std::vector<double>&) const {}
double Ranks::sum(double x) const { return x; }
int64_t Ranks::max(int64_t x) const { return x; }
Tensor Ranks::rows(const Tensor& own) const { return own; }
std::vector<std::string> Ranks::gather(const std::string& own) const { return {own}; }
std::string Ranks::from_first(const std::string& text) const { return text; }
std::function<int64_t()> Ranks::queue() const { return Peers::queue(); }
void Ranks::barrier() const {}
std::function<void()> Ranks::exchange(const Tensor&, const Tensor&, std::vector<int64_t>, std::vector<int64_t>) const {
  return [] {};
}
void Ranks::share(std::vector<Tensor>&) const {}
bool Ranks::broken() const { return false; }
int64_t Ranks::bytes_sent() const { return 0; }
void Ranks::settle() const {}
void Ranks::tell() const noexcept {}
Ranks::Scope::Scope(const Ranks& ranks) : ranks_(ranks) {}
Ranks::Scope::~Scope() = default;

}  // namespace isentrope::train

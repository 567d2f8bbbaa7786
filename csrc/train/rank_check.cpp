#include "csrc/train/rank_check.h"

#include <elf.h>
#include <link.h>
#include <torch/version.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>

#include "csrc/train/config_values.h"

namespace isentrope::train {
namespace {

// The linker's digest of the program or library that this function is in: "" where it has none.
std::string build_id() {
  struct Search {
    uintptr_t inside;
    std::string id;
  } search{reinterpret_cast<uintptr_t>(&build_id), ""};
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* data) {
        auto& search = *static_cast<Search*>(data);
        bool here = false;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& part = info->dlpi_phdr[i];
          const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
          here = here || (part.p_type == PT_LOAD && search.inside >= begin && search.inside < begin + part.p_memsz);
        }
        if (!here) return 0;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& part = info->dlpi_phdr[i];
          if (part.p_type != PT_NOTE) continue;
          const char* at = reinterpret_cast<const char*>(info->dlpi_addr + part.p_vaddr);
          for (const char* end = at + part.p_memsz; at + sizeof(ElfW(Nhdr)) < end;) {
            const auto* note = reinterpret_cast<const ElfW(Nhdr)*>(at);
            const char* name = at + sizeof(*note);
            const char* bytes = name + ((note->n_namesz + 3) & ~3u);
            at = bytes + ((note->n_descsz + 3) & ~3u);
            if (note->n_type != NT_GNU_BUILD_ID ||
                std::string_view(name, note->n_namesz) != std::string_view("GNU\0", 4))
              continue;
            for (uint32_t b = 0; b < note->n_descsz; ++b) {
              char hex[3];
              std::snprintf(hex, sizeof(hex), "%02x", static_cast<unsigned char>(bytes[b]));
              search.id += hex;
            }
            return 1;
          }
        }
        return 1;
      },
      &search);
  return search.id;
}

std::map<std::string, std::string> of_this_rank(const TrainConfig& config) {
  std::map<std::string, std::string> all = values_of(config);
  all.erase("run.threads");
  all["the program"] = "isentrope " ISENTROPE_VERSION ", torch " TORCH_VERSION ", build " + build_id();
  return all;
}

// own: name → value. Throws on a rank that has another value than the first one.
void check_equal(const std::string& must, const std::map<std::string, std::string>& own, const Ranks& ranks) {
  using nlohmann::json;
  const std::string text = json(own).dump(-1, ' ', false, json::error_handler_t::replace);
  const std::string differs = difference(json::parse(ranks.from_first(text)), json::parse(text), ranks.rank());
  if (!differs.empty()) throw std::runtime_error(must + differs);
}

}  // namespace

std::string difference(const std::map<std::string, std::string>& first, const std::map<std::string, std::string>& own,
                       int64_t rank) {
  std::string text;
  const auto told = [&](const std::string& key, const std::string& there, const std::string& here) {
    text += (text.empty() ? "" : "; ") + key + " is " + there + " on rank 0, and " + here + " on rank " +
            std::to_string(rank);
  };
  for (const auto& [key, value] : own) {
    const auto found = first.find(key);
    if (found == first.end())
      told(key, "not there", value);
    else if (found->second != value)
      told(key, found->second, value);
  }
  for (const auto& [key, value] : first)
    if (!own.contains(key)) told(key, value, "not there");
  return text;
}

void check_same(const Ranks& ranks, const std::string& what, const std::string& found) {
  if (ranks.alone()) return;
  const std::vector<std::string> all = ranks.gather(found);
  for (size_t rank = 1; rank < all.size(); ++rank)
    if (all[rank] != all[0])
      throw std::runtime_error(what + ": rank 0 has " + all[0] + ", and rank " + std::to_string(rank) + " has " +
                               all[rank] + "; all ranks must see the same files");
}

void check_ranks(const TrainConfig& config, const Ranks& ranks) {
  if (ranks.alone()) return;
  check_equal("the ranks of a run must have the same program and configuration: ", of_this_rank(config), ranks);
  for (const PhaseConfig& phase : config.phases) {
    const std::string at = "phases." + phase.name + ".";
    if (phase.objective.attention_entropy.coef > 0 && phase.batch.micro_tokens > 0)
      throw std::runtime_error(at +
                               "objective.attention_entropy.coef: its penalty speaks of a micro-batch, and those of " +
                               std::to_string(ranks.size()) +
                               " ranks are not those of one; write batch.micro_tokens: 0, "
                               "with which it speaks of the update");
    const int64_t sequences =
        phase.rollout ? phase.rollout->prompts * phase.rollout->num_generations / phase.rollout->mini_batches
                      : phase.batch.sequences;
    if (sequences < ranks.size())
      throw std::runtime_error(at + (phase.rollout ? "rollout" : "batch.sequences") + ": an update has " +
                               std::to_string(sequences) + " sequences, and there are " + std::to_string(ranks.size()) +
                               " ranks, each of which takes at least one; start fewer, or make the update larger");
    if (phase.objective.kind == "grpo" && phase.objective.scope == "micro" && phase.objective.selects())
      throw std::runtime_error(at + "objective.scope: micro selects within micro-batches, and those of " +
                               std::to_string(ranks.size()) + " ranks are not those of one; write scope: global");
    for (size_t i = 0; i < phase.weight.size(); ++i)
      std::visit(
          [&](const auto& method) {
            if constexpr (requires { method.scope; })
              if (method.scope == "micro")
                throw std::runtime_error(at + "weight." + std::to_string(i) + ".scope: micro takes statistics of " +
                                         "micro-batches, and those of " + std::to_string(ranks.size()) +
                                         " ranks are not those of one; write scope: update");
          },
          phase.weight[i].value);
  }
}

int64_t ranks_on_this_machine(const Ranks& ranks) {
  char name[256] = "";
  ::gethostname(name, sizeof(name) - 1);
  const std::vector<std::string> names = ranks.gather(name);
  return std::count(names.begin(), names.end(), std::string(name));
}

}  // namespace isentrope::train

// Contrastive phases: scores, losses and figures of rankings against loops in double and figures that were computed elsewhere; an update
// that is cut against the whole.
#include <gtest/gtest.h>
#include <torch/types.h>

#include <cmath>
#include <set>

#include "csrc/data/contrastive_source.h"
#include "csrc/train/contrastive_evaluation.h"
#include "csrc/train/contrastive_objective.h"
#include "csrc/train/match_scores.h"
#include "tests/csrc/small_update.h"

namespace isentrope::train {
namespace ISENTROPE_UNIT {

using data::ContrastiveConfig;
using torch::Tensor;
using Row = std::vector<double>;

double dot(const Row& a, const Row& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
double cosine(const Row& a, const Row& b) { return dot(a, b) / std::sqrt(dot(a, a) * dot(b, b)); }

// csrc/train/match_scores.h by loops.
double score_of(const ContrastiveConfig& config, const std::vector<Row>& a, const std::vector<Row>& b) {
  double s = 0;
  if (config.score == "mean") {
    Row mean_a(a[0].size()), mean_b(a[0].size());
    for (const Row& one : a)
      for (size_t i = 0; i < one.size(); ++i) mean_a[i] += one[i] / static_cast<double>(a.size());
    for (const Row& one : b)
      for (size_t i = 0; i < one.size(); ++i) mean_b[i] += one[i] / static_cast<double>(b.size());
    return cosine(mean_a, mean_b);
  }
  for (const Row& q : a) {
    double best = -2, over = 0, under = 0, most = -1e300;
    for (const Row& y : b) most = std::max(most, dot(q, y));
    for (const Row& y : b) {
      const double weight = std::exp((dot(q, y) - most) / config.attention);
      best = std::max(best, cosine(q, y)), over += weight * cosine(q, y), under += weight;
    }
    s += config.score == "max" ? best : over / under;
  }
  return s;
}

double loss_of(const ContrastiveConfig& config, const std::vector<Row>& s, const std::vector<std::set<int>>& matches) {
  const auto one_way = [&](size_t Q, size_t N, auto at, auto is) {
    double loss = 0, rows = 0;
    for (size_t q = 0; q < Q; ++q) {
      double sum = 0, count = 0, row = 0;
      for (size_t n = 0; n < N; ++n) sum += std::exp(at(q, n) / config.temperature);
      for (size_t n = 0; n < N; ++n)
        if (is(q, n)) row -= at(q, n) / config.temperature - std::log(sum), ++count;
      if (count > 0) loss += row / count, ++rows;
    }
    return loss / rows;
  };
  const double forth = one_way(
      s.size(), s[0].size(), [&](size_t q, size_t n) { return s[q][n]; },
      [&](size_t q, size_t n) { return matches[q].contains(static_cast<int>(n)); });
  if (!config.symmetric) return forth;
  return forth + one_way(
                     s[0].size(), s.size(), [&](size_t n, size_t q) { return s[q][n]; },
                     [&](size_t n, size_t q) { return matches[q].contains(static_cast<int>(n)); });
}

Tensor tensor_of(const std::vector<Row>& rows) {
  std::vector<Tensor> each;
  for (const Row& row : rows) each.push_back(torch::tensor(row, torch::kFloat64));
  return torch::stack(each);
}

TEST(Contrastive, LossesAreThoseThatWereComputedElsewhere) {
  const Tensor s = tensor_of({{.9, .2, .1, .4}, {.3, .8, .7, 0}, {.1, .5, .6, .2}}).requires_grad_(true);
  Tensor matches = torch::zeros({3, 4}, torch::kBool);
  for (const auto& [q, y] : {std::pair{0, 0}, {0, 3}, {1, 1}, {1, 2}, {2, 2}}) matches[q][y] = true;
  ContrastiveConfig config{.temperature = 0.1, .symmetric = false};
  const Tensor forth = contrastive_loss(config, s, matches);
  EXPECT_NEAR(forth.item<double>(), 1.219262, 5e-7);
  forth.backward();
  const Row wanted{1.640260, .003016, .001109, -1.644385};
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(s.grad()[0][i].item<double>(), wanted[i], 5e-7) << i;
  config.symmetric = true;
  EXPECT_NEAR(contrastive_loss(config, s.detach(), matches).item<double>(), 1.472201, 1e-6);
}

TEST(Contrastive, ScoresAreThoseThatWereComputedElsewhere) {
  const Tensor q = tensor_of({{1, 0}, {.6, .8}}).unsqueeze(0), y = tensor_of({{2, 0}, {0, 1}, {.5, .5}}).unsqueeze(0);
  const Tensor two = torch::tensor({2}), three = torch::tensor({3});
  const auto found = [&](const ContrastiveConfig& config) {
    return match_scores(config, q, two, y, three).item<double>();
  };
  for (const auto& [attention, wanted] : {std::pair{1.0, 1.615028}, {0.1, 1.606137}, {0.01, 1.600000}})
    EXPECT_NEAR(found({.score = "soft", .attention = attention}), wanted, 5e-7) << attention;
  EXPECT_NEAR(found({.score = "max"}), 1.989949, 5e-7);
  EXPECT_NEAR(found({.score = "mean"}), 0.997054, 5e-7);
}

struct Texts {
  std::vector<std::vector<Row>> rows;
  Tensor vectors, lengths;
};
Texts texts(const std::vector<int64_t>& lengths, int64_t D, uint64_t seed) {
  auto generator = at::detail::createCPUGenerator(seed);
  Texts made;
  const auto B = static_cast<int64_t>(lengths.size()), T = *std::max_element(lengths.begin(), lengths.end());
  made.vectors = at::randn({B, T, D}, generator, torch::kFloat64);
  made.lengths = torch::tensor(lengths);
  for (int64_t b = 0; b < B; ++b) {
    auto& text = made.rows.emplace_back();
    for (int64_t t = 0; t < lengths[b]; ++t) {
      const Tensor row = made.vectors[b][t].contiguous();
      text.emplace_back(row.data_ptr<double>(), row.data_ptr<double>() + D);
    }
  }
  return made;
}

class Score : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Contrastive, Score, testing::Values("soft", "max", "mean"));

TEST_P(Score, AgreesWithLoopsAndItsGradientWithDifferences) {
  const ContrastiveConfig config{.score = GetParam(), .attention = 0.7, .temperature = 0.3};
  const Texts a = texts({3, 1, 7}, 5, 1), b = texts({1, 4, 2, 6}, 5, 2);
  const std::vector<std::set<int>> matches{{0, 2}, {}, {1, 2}};
  Tensor matched = torch::zeros({3, 4}, torch::kBool);
  for (int q = 0; q < 3; ++q)
    for (const int n : matches[q]) matched[q][n] = true;
  const Tensor s = match_scores(config, a.vectors, a.lengths, b.vectors, b.lengths);
  std::vector<Row> by_loops(3, Row(4));
  for (size_t q = 0; q < 3; ++q)
    for (size_t n = 0; n < 4; ++n) {
      by_loops[q][n] = score_of(config, a.rows[q], b.rows[n]);
      EXPECT_NEAR(s[q][n].item<double>(), by_loops[q][n], 1e-12) << q << " " << n;
    }
  EXPECT_NEAR(contrastive_loss(config, s, matched).item<double>(), loss_of(config, by_loops, matches), 1e-12);

  Tensor x = a.vectors.clone().requires_grad_(true), y = b.vectors.clone().requires_grad_(true);
  const auto loss = [&] { return contrastive_loss(config, match_scores(config, x, a.lengths, y, b.lengths), matched); };
  loss().backward();
  const torch::NoGradGuard no_grad;
  for (Tensor* one : {&x, &y}) {
    Tensor flat = one->view({-1});
    const Tensor gradient = one->grad().view({-1});
    for (int64_t i = 0; i < flat.numel(); i += 3) {
      constexpr double kStep = 1e-6;
      const double at = flat[i].item<double>();
      flat[i] = at + kStep;
      const double above = loss().item<double>();
      flat[i] = at - kStep;
      const double below = loss().item<double>();
      flat[i] = at;
      // Of differences: the third derivative times 1e-12, and rounding of the loss over the step.
      EXPECT_NEAR(gradient[i].item<double>(), (above - below) / (2 * kStep), 1e-7) << i;
    }
  }
}

data::Tokenizer letters() {
  data::TokenizerConfig config;
  config.characters = "abcdefghijklmnopqrst.";
  return data::Tokenizer(config);
}

std::vector<data::Example> examples() {
  std::vector<data::Example> made;
  for (const auto& [prompt, positives] : {std::pair<std::string, std::vector<std::string>>{"abc", {"d", "ef", "ghij"}},
                                          {"b", {"ef", "k"}},
                                          {"cde", {"lmnop"}}}) {
    data::Example& one = made.emplace_back();
    one.prompt = prompt, one.positives = positives;
  }
  return made;
}

TEST(Contrastive, EveryTextThatMatchesIsAPositiveWhoeverDrewIt) {
  const data::Tokenizer tokenizer = letters();
  const auto decoded = [&](const data::Batch& batch, int64_t row) {
    std::vector<int64_t> ids;
    for (int64_t t = 0; t < batch.lengths[row].item<int64_t>(); ++t)
      ids.push_back(batch.tokens[row][t].item<int64_t>());
    return tokenizer.decode(ids);
  };
  const std::vector<data::Example> given = examples();
  std::set<std::string> drawn;
  for (int64_t first = 0; first < 20; ++first) {
    const data::Batch batch = data::contrastive_batch(given, tokenizer, 16, {.positives = 1}, 5, first);
    const Tensor matches = matches_of(batch);
    ASSERT_EQ(matches.size(0), 3);
    std::set<std::string> texts;
    for (int64_t n = 0; n < matches.size(1); ++n) {
      const std::string text = decoded(batch, 3 + n);
      EXPECT_TRUE(texts.insert(text).second) << text << " stands there twice";
      for (int64_t q = 0; q < 3; ++q) {
        const auto& all = given[q].positives;
        EXPECT_EQ(matches[q][n].item<bool>(), std::find(all.begin(), all.end(), text) != all.end()) << q << " " << text;
      }
      drawn.insert(text);
    }
  }
  EXPECT_EQ(drawn, (std::set<std::string>{"d", "ef", "ghij", "k", "lmnop"}));
  EXPECT_THROW(data::rows_of_texts({"abc", ""}, tokenizer, 16), std::invalid_argument);
  EXPECT_THROW(data::rows_of_texts({"abcdef"}, tokenizer, 5), std::invalid_argument);
}

// run() of small_update.h, without the head, which has no gradient.
Outcome learn(const ObjectiveConfig& config, int64_t micro_tokens, const data::Batch& update) {
  model::Decoder model = small_model();
  const auto objective = make_objective(config, {.micro_tokens = micro_tokens}, model);
  Outcome out{objective->backward(model, update, 5, nullptr), {}};
  for (const Tensor& parameter : model->parameters())
    if (parameter.grad().defined()) out.gradient.push_back(parameter.grad().clone());
  return out;
}

TEST(Contrastive, AnUpdateThatIsCutHasTheGradientOfTheWhole) {
  const data::Batch update = data::contrastive_batch(examples(), letters(), 16, {}, 5, 0);
  ASSERT_EQ(update.size(), 3 + 5);
  for (const char* score : {"soft", "max", "mean"}) {
    ObjectiveConfig config;
    config.kind = "contrastive";
    config.contrastive.score = score;
    const Outcome whole = learn(config, 0, update);
    EXPECT_GT(whole.gradient.size(), 5);
    for (const int64_t micro_tokens : {1, 15}) expect_same(whole, learn(config, micro_tokens, update), score);
    EXPECT_EQ(whole.stats.at("match/texts"), 5);
    EXPECT_NEAR(whole.stats.at("match/positives"), 2, 1e-12);
  }
}

TEST(Contrastive, RankingsAreJudgedAsElsewhere) {
  // d3 d1 d7 d2 d9, of which d1 and d2 match, and d5, which comes last.
  const Ranked found = judged_ranking({false, true, false, true, false, true});
  EXPECT_NEAR(found.average_precision, (1 / 2.0 + 2 / 4.0 + 3 / 6.0) / 3, 1e-12);
  EXPECT_NEAR(found.rp10, 1, 1e-12);
  EXPECT_NEAR(found.reciprocal_rank, 0.5, 1e-12);
  EXPECT_NEAR(found.recall100, 1, 1e-12);
  // d5 beyond place 100: figures that were computed elsewhere.
  std::vector<bool> relevant(200);
  relevant[1] = relevant[3] = relevant[199] = true;
  const Ranked far = judged_ranking(relevant);
  EXPECT_NEAR(far.ndcg10, .498189, 5e-7);
  EXPECT_NEAR(far.recall100, .666667, 5e-7);
  EXPECT_NEAR(far.rp10, .666667, 5e-7);
  EXPECT_NEAR(far.average_precision, .333333 + 3 / 200.0 / 3, 5e-7);
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train

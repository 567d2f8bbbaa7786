#include "csrc/rl/interpreter.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "csrc/data/episodes.h"
#include "tests/csrc/message.h"

namespace isentrope::rl {
namespace ISENTROPE_UNIT {

TEST(Interpreter, WorksOutExpressions) {
  const Interpreters python((Interpreter()));
  const std::pair<const char*, const char*> known[] = {{"1+1", "2"},
                                                       {" pow(3, 4, 7) ", "4"},
                                                       {"sum(i*i for i in range(7))", "91"},
                                                       {"[max(a, b) for a, b in zip([1, 5], (4, 2))][::-1]", "[5, 4]"},
                                                       {"7 // 2 if 3 < 4 <= 4 else -1", "3"},
                                                       {"2**100", "1267650600228229401496703205376"},
                                                       {"not True", "False"},
                                                       {"round(2/3, 3)", "0.667"}};
  for (const auto& [expression, value] : known) {
    const Outcome found = python.work_out(expression);
    EXPECT_EQ(found.value, value) << expression;
    EXPECT_EQ(found.error, "") << expression;
  }
}

// What reaches for files, sockets, processes or the interpreter itself is refused before it is run.
TEST(Interpreter, RefusesWhatIsNoComputation) {
  const Interpreters python((Interpreter()));
  for (const char* attempt : {"open('/etc/hostname').read()",
                              "__import__('os').system('true')",
                              "().__class__",
                              "(lambda: 1)()",
                              "'a' * 3",
                              "f'{1}'",
                              "print(1)",
                              "eval('1')",
                              "exec('1')",
                              "input()",
                              "globals()",
                              "[x := 1]",
                              "sorted([2, 1], key=abs)",
                              "max(*[1, 2])",
                              "{1, 2}",
                              "{1: 2}",
                              "(1).real",
                              "abs.__self__",
                              "__builtins__",
                              "__name__",
                              "[abs for abs in (1, 2)]",
                              "await x",
                              "[1][0](1)"})
    EXPECT_TRUE(python.work_out(attempt).error == "refused" || python.work_out(attempt).error == "raised" ||
                python.work_out(attempt).error == "syntax")
        << attempt << " → " << python.work_out(attempt).value << python.work_out(attempt).error;
  for (const char* attempt : {"().__class__", "(lambda: 1)()", "'a' * 3", "f'{1}'", "[1][0](1)"})
    EXPECT_EQ(python.work_out(attempt).error, "refused") << attempt;
  for (const char* broken : {"1 +", "", "import os", "a = 1", "1\n2", "(", "\xff", "1;2"})
    EXPECT_EQ(python.work_out(broken).error, "syntax") << broken;
  for (const char* raises : {"1/0", "x", "[][0]", "open(1)", "abs(1, 2)"})
    EXPECT_EQ(python.work_out(raises).error, "raised") << raises;
}

TEST(Interpreter, LimitsEndACall) {
  Interpreter config;
  config.time_s = 0.3;
  config.output = 20;
  const Interpreters python(config);
  const auto begun = std::chrono::steady_clock::now();
  EXPECT_EQ(python.work_out("sum(i for i in range(10**12))").error, "time");
  EXPECT_EQ(python.work_out("9**9**9").error, "time") << "one step of the interpreter that does not end";
  EXPECT_EQ(python.work_out("[0] * 10**9").error, "memory");
  EXPECT_EQ(python.work_out("1 << 10**10").error, "memory");
  EXPECT_EQ(python.work_out("list(range(100))").error, "output");
  EXPECT_EQ(python.work_out("[" + std::string(20000, '(') + "]").error.empty(), false);
  EXPECT_EQ(python.work_out(std::string(3000, '-') + "1").error.empty(), false) << "deeper than the stack";
  EXPECT_EQ(python.work_out("1+1").value, "2") << "and the next is worked out as before";
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count(), 20);
}

TEST(Interpreter, ThreadsDoNotMix) {
  const Interpreters python((Interpreter()));
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i)
        EXPECT_EQ(python.work_out(std::to_string(t) + "*1000+" + std::to_string(i)).value,
                  std::to_string(t * 1000 + i));
    });
  for (std::thread& thread : threads) thread.join();
}

TEST(Interpreter, APythonThatIsNotThereIsNamed) {
  Interpreter config;
  config.python = "no-such-python";
  expect_all(message([&] { Interpreters(config).work_out("1"); }), {"environment.python", "no-such-python"});
  config.python = "true";  // begins, and says nothing
  expect_all(message([&] { Interpreters(config).work_out("1"); }), {"environment.python", "true"});
}

TEST(Interpreter, AConversation) {
  const auto environment = Interpreter().make();
  const auto episode = environment->reset({"max(37,48)*3=", "", "144"}, 1, nullptr);
  EXPECT_EQ(episode->step("so >max(37,48)*3\n").text, "144\n");
  for (const char* wrong : {">\n", ">max(\n", ">9/0\n", ">open(1)\n", ">[1,2]\n", ">().__class__\n"}) {
    const Reply reply = episode->step(wrong);
    EXPECT_TRUE(reply.error) << wrong;
    EXPECT_FALSE(reply.done);
    EXPECT_EQ(reply.text, "?\n") << wrong;
  }
  EXPECT_TRUE(episode->step("A144").done);
  EXPECT_EQ(episode->scores, (EnvironmentScores{{"answer", 1}, {"calls", 7}, {"ended", 1}, {"errors", 6}}))
      << "of the errors one is a value that the alphabet cannot write";
  const auto other = environment->reset({"1=", "", "2"}, 1, nullptr);
  EXPECT_TRUE(other->step("A12\n").done);
  EXPECT_EQ(other->scores.at("answer"), 0);
  Interpreter named;
  named.named_errors = true;
  EXPECT_EQ(named.make()->reset({"1=", "", "1"}, 1, nullptr)->step(">(\n").text, "?syntax\n");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::rl

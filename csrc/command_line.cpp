#include "csrc/command_line.h"

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "csrc/message.h"
#include "csrc/train/process.h"

namespace isentrope {
namespace {

int wrong(const std::string& what, const std::string& command = "") {
  std::fprintf(stderr, "isentrope: %s\nWhat there is:  isentrope %s--help\n", on_a_screen(what).c_str(),
               command.empty() ? "" : (command + " ").c_str());
  return 2;
}

}  // namespace

std::optional<int> parse(CLI::App& app, int argc, char** argv) {
  std::vector<std::string> commands;
  for (const CLI::App* command : app.get_subcommands([](CLI::App*) { return true; }))
    commands.push_back(command->get_name());
  const std::string first = argc > 1 ? argv[1] : "";
  if (argc < 2) return wrong("no command was given" + suggestion("", commands, "the commands"));
  if (!first.starts_with("-") && std::find(commands.begin(), commands.end(), first) == commands.end())
    return wrong("there is no command '" + first + "'" + suggestion(first, commands, "the commands"));
  try {
    app.parse(argc, argv);
    return std::nullopt;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      std::ostringstream help;
      app.exit(error, help, help);
      train::print(help.str());
      return 0;
    }
    const CLI::App* command = app.get_subcommands().empty() ? &app : app.get_subcommands().front();
    std::vector<std::string> options;
    for (const CLI::Option* option : command->get_options())
      if (option->get_name().starts_with("-")) options.push_back(option->get_name());
    std::string what = error.what();
    for (const std::string& word : command->remaining())  // what no option took
      if (word.starts_with("-")) {
        const std::string name = word.substr(0, word.find('='));
        what = "there is no option '" + name + "'" + suggestion(name, options, "the options");
      }
    return wrong(what, command == &app ? "" : command->get_name());
  }
}

}  // namespace isentrope

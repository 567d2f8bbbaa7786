#include "csrc/python/alarm.h"

#include <pthread.h>
#include <signal.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace isentrope::python {
namespace {

class Alarm {
 public:
  Alarm(double seconds, double again, int number) {
    // No signal of the process is for the new thread.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this, seconds, again, number, of = pthread_self()] {
      std::unique_lock lock(mutex_);
      for (double wait = seconds; !done_.wait_for(lock, std::chrono::duration<double>(wait), [&] { return stopped_; });
           wait = again)
        pthread_kill(of, number);
    });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~Alarm() { stop(); }
  Alarm(const Alarm&) = delete;

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    done_.notify_all();
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  bool stopped_ = false;
  std::thread thread_;
};

}  // namespace

void bind_alarm(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Alarm>(m, "Alarm").def(py::init<double, double, int>()).def("stop", &Alarm::stop);
}

}  // namespace isentrope::python

// llm.c's CPU program (github.com/karpathy/llm.c, train_gpt2.c) made to step when it is asked: gpt2_step.py compiles it with llm.c's folder on the
// include path and TESTING defined, which leaves its main out. Arguments: checkpoint, batch of int32 tokens [B, T + 1], B, T, rate.
#include "train_gpt2.c"

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  GPT2 model;
  gpt2_build_from_checkpoint(&model, argv[1]);
  const int B = atoi(argv[3]), T = atoi(argv[4]);
  int *rows = mallocCheck(B * (T + 1) * sizeof(int)), *inputs = mallocCheck(B * T * sizeof(int)), *targets = mallocCheck(B * T * sizeof(int));
  FILE* file = fopenCheck(argv[2], "rb");
  freadCheck(rows, sizeof(int), B * (T + 1), file);
  fcloseCheck(file);
  for (int i = 0; i < B * T; ++i) {
    inputs[i] = rows[i / T * (T + 1) + i % T];
    targets[i] = rows[i / T * (T + 1) + i % T + 1];
  }
  char line[64];
  for (int step = 1; fgets(line, sizeof line, stdin); ++step) {
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    gpt2_forward(&model, inputs, targets, B, T);
    gpt2_zero_grad(&model);
    gpt2_backward(&model);
    gpt2_update(&model, atof(argv[5]), 0.9f, 0.999f, 1e-8f, 0.0f, step);
    clock_gettime(CLOCK_MONOTONIC, &end);
    printf("{\"loss\": %.6f, \"seconds\": %.9f}\n", model.mean_loss, end.tv_sec - start.tv_sec + 1e-9 * (end.tv_nsec - start.tv_nsec));
    fflush(stdout);
  }
}

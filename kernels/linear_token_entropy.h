// token_entropy of the logits of a linear head, which never exist together: they are made block by block of the vocabulary.
//
//   z = h · Wᵀ + b         where there is a soft cap c:  z ← c · tanh(z / c)         then token_entropy (kernels/token_entropy.h)
//
// A block's logits are added to the sums of their row, l = Σ exp(s - m), e = Σ exp(s - m)(s - m), which move to a higher reference m
// where a block holds one: l ← k·l, e ← k·(e + l·log k), k = exp(m - m'), so that no digit is lost. Backward, the logits are made
// again, and with token_entropy's dz of a row (from entropy, anchor and log_sum of the whole row)
//
//   dz ← dz · (1 - (z/c)²)        dh = Σ_blocks dz · W        dW = dzᵀ · h        db = Σ_rows dz
//
// Special rows are those of token_entropy. Rows that are ignored, and backward those into which nothing flows, need not be given:
// the CPU backend leaves them out of the products.
#pragma once

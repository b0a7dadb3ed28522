// Table look-ups in registers (André, Kermarrec and Le Scouarnec 2015): codes of 4 bits, 32 vectors to a block, and for each piece of a
// code a table of 16 small numbers. Sums over the pieces are exact.

#pragma once

#include "vectors.hpp"

namespace shoal {

constexpr int kCoded = 32;       // vectors of a block of codes
constexpr int kPieceStep = 4;    // pieces are filled up to a multiple of it
constexpr int kMostPieces = 1024; // the sum of so many entries fits 16 bits
constexpr int kBytesAdded = 4;   // entries whose sum fits a byte
constexpr float kLargestEntry = 63;

typedef uint8_t Bytes16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint16_t Shorts __attribute__((vector_size(32)));

#if defined(__AVX2__)
// (16) sums, from those of even vectors and of odd ones, whose halves are of other pieces.
inline Shorts interleaved(__m256i even, __m256i odd) {
    __m128i evens = _mm_add_epi16(_mm256_castsi256_si128(even), _mm256_extracti128_si256(even, 1));
    __m128i odds = _mm_add_epi16(_mm256_castsi256_si128(odd), _mm256_extracti128_si256(odd, 1));
    return (Shorts)_mm256_set_m128i(_mm_unpackhi_epi16(evens, odds), _mm_unpacklo_epi16(evens, odds));
}
#endif

#if defined(__AVX512BW__)
typedef __m512i Wide;
constexpr int kWide = 4;  // pieces of a register
inline Wide load_wide(const uint8_t* at) { return _mm512_loadu_si512(at); }
inline Wide nibbles(Wide v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Wide look_up(Wide table, Wide codes) { return _mm512_shuffle_epi8(table, codes); }
inline Wide add_bytes(Wide a, Wide b) { return _mm512_add_epi8(a, b); }
inline Wide add_shorts(Wide a, Wide b) { return _mm512_add_epi16(a, b); }
template <int kBits> inline Wide shifted(Wide v) { return _mm512_srli_epi16(v, kBits); }
inline Wide nothing() { return _mm512_setzero_si512(); }
inline __m256i folded(Wide v) { return _mm256_add_epi16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)); }
inline Wide without_odd(Wide both, Wide odd) { return _mm512_sub_epi16(both, _mm512_slli_epi16(odd, 8)); }
#elif defined(__AVX2__)
typedef __m256i Wide;
constexpr int kWide = 2;
inline Wide load_wide(const uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }
inline Wide nibbles(Wide v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline Wide look_up(Wide table, Wide codes) { return _mm256_shuffle_epi8(table, codes); }
inline Wide add_bytes(Wide a, Wide b) { return _mm256_add_epi8(a, b); }
inline Wide add_shorts(Wide a, Wide b) { return _mm256_add_epi16(a, b); }
template <int kBits> inline Wide shifted(Wide v) { return _mm256_srli_epi16(v, kBits); }
inline Wide nothing() { return _mm256_setzero_si256(); }
inline __m256i folded(Wide v) { return v; }
inline Wide without_odd(Wide both, Wide odd) { return _mm256_sub_epi16(both, _mm256_slli_epi16(odd, 8)); }
#endif

// Of one block and each of some queries, (32) sums over the pieces of table[piece][code]. Meanwhile the block that comes so many blocks
// later is fetched, if any is to be.
template <int kQueries, int kBlocksAhead>
inline void sum_codes(const uint8_t* codes, const uint8_t* const* tables, int pieces, Shorts (*sums)[2]) {
#if defined(__AVX2__)
    // Of two bytes next to each other their sum, 256 times the upper one, and the upper one alone are kept. First some bytes are
    // added as bytes, as far as those of a table fit.
    Wide low[kQueries], low_odd[kQueries], high[kQueries], high_odd[kQueries];
    for (int q = 0; q < kQueries; q++) low[q] = low_odd[q] = high[q] = high_odd[q] = nothing();
    for (int m = 0; m < pieces;) {
        Wide first[kQueries], second[kQueries];
        for (int q = 0; q < kQueries; q++) first[q] = second[q] = nothing();
        for (int i = 0; i < kBytesAdded && m < pieces; i++, m += kWide) {
            if (kBlocksAhead) __builtin_prefetch(codes + 16 * (m + kBlocksAhead * pieces));
            Wide both = load_wide(codes + 16 * m), below = nibbles(both), above = nibbles(shifted<4>(both));
            for (int q = 0; q < kQueries; q++) {
                Wide table = load_wide(tables[q] + 16 * m);
                first[q] = add_bytes(first[q], look_up(table, below));
                second[q] = add_bytes(second[q], look_up(table, above));
            }
        }
        for (int q = 0; q < kQueries; q++) {
            low[q] = add_shorts(low[q], first[q]);
            low_odd[q] = add_shorts(low_odd[q], shifted<8>(first[q]));
            high[q] = add_shorts(high[q], second[q]);
            high_odd[q] = add_shorts(high_odd[q], shifted<8>(second[q]));
        }
    }
    for (int q = 0; q < kQueries; q++) {
        sums[q][0] = interleaved(folded(without_odd(low[q], low_odd[q])), folded(low_odd[q]));
        sums[q][1] = interleaved(folded(without_odd(high[q], high_odd[q])), folded(high_odd[q]));
    }
#else
    for (int q = 0; q < kQueries; q++) {
        Shorts low = {}, high = {};
        for (int m = 0; m < pieces; m++) {
            Bytes16 entries = *reinterpret_cast<const Bytes16*>(tables[q] + 16 * m);
            Bytes16 both = *reinterpret_cast<const Bytes16*>(codes + 16 * m);
#if defined(__SSSE3__)
            const __m128i nibble = _mm_set1_epi8(15);
            Bytes16 first = (Bytes16)_mm_shuffle_epi8((__m128i)entries, _mm_and_si128((__m128i)both, nibble));
            Bytes16 second = (Bytes16)_mm_shuffle_epi8((__m128i)entries, _mm_and_si128(_mm_srli_epi16((__m128i)both, 4), nibble));
#else
            Bytes16 first, second;
            for (int j = 0; j < 16; j++) {
                first[j] = entries[both[j] & 15];
                second[j] = entries[both[j] >> 4];
            }
#endif
            low += __builtin_convertvector(first, Shorts);
            high += __builtin_convertvector(second, Shorts);
        }
        sums[q][0] = low;
        sums[q][1] = high;
    }
#endif
}

}  // namespace shoal

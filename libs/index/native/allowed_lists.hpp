// Which vectors of posting lists (clusters.hpp) may answer, list by list: looked up the first time a search comes to a list, and known to
// the searches after it that may answer with the same. Several threads may look the same list up at once: they find the same.

#pragma once

#include "look_up.hpp"

namespace shoal {

class AllowedLists {
  public:
    // `starts`, `rows`: of the lists. `allowed`: (rows) a byte each; null for all. `counts`: (lists) -1 where yet unknown. `bits`: (blocks).
    AllowedLists(const int64_t* starts, const uint32_t* rows, const uint8_t* allowed, int32_t* counts, uint32_t* bits)
        : starts_(starts), rows_(rows), allowed_(allowed), counts_(counts), bits_(bits) {}

    // Of a list.
    int32_t count(uint32_t list) const {
        int32_t known = __atomic_load_n(&counts_[list], __ATOMIC_ACQUIRE);
        return known >= 0 ? known : look_up(list);
    }

    // Of a block of a list that was counted, a bit for each that may answer.
    uint32_t of_block(int64_t block) const { return __atomic_load_n(&bits_[block], __ATOMIC_RELAXED); }

  private:
    __attribute__((noinline)) int32_t look_up(uint32_t list) const {
        int32_t found = 0;
        for (int64_t block = starts_[list]; block < starts_[list + 1]; block++) {
            uint32_t bits = bits_of(rows_ + block * kCoded);
            __atomic_store_n(&bits_[block], bits, __ATOMIC_RELAXED);
            found += __builtin_popcount(bits);
        }
        int32_t unknown = -1;  // what is known never changes: callers make room by it
        bool first = __atomic_compare_exchange_n(&counts_[list], &unknown, found, false, __ATOMIC_RELEASE, __ATOMIC_ACQUIRE);
        return first ? found : unknown;
    }

    uint32_t bits_of(const uint32_t* rows) const {
        int filled = kCoded;
        while (filled && rows[filled - 1] == kNone) filled--;
        if (!allowed_) return static_cast<uint32_t>((uint64_t{1} << filled) - 1);
        uint32_t bits = 0;
        for (int i = 0; i < filled; i++) bits |= uint32_t{allowed_[rows[i]] != 0} << i;
        return bits;
    }

    const int64_t* starts_;
    const uint32_t* rows_;
    const uint8_t* allowed_;
    int32_t* counts_;
    uint32_t* bits_;
};

}  // namespace shoal

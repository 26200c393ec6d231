//! What the allocator gives back to the device when the device has no more.

use super::blocks::NONE;
use super::{CachingAllocator, SMALL};
use crate::spec::units::Bytes;

impl CachingAllocator {
    /// Releases just enough blocks too large to be split, where splitting has a limit; whether that was enough.
    pub(super) fn release_oversize(&mut self, size: u64) -> bool {
        let Some(limit) = self.config.max_split_size.map(|b| b.0) else {
            return false;
        };
        let wanted = size.max(limit);
        let pool = self.pool(size <= SMALL);
        if let Some(&(_, _, id)) = pool.free.range((wanted, 0, 0)..).next() {
            return self.release(id);
        }
        let oversize = pool.free.range((limit, 0, 0)..).rev();
        let largest: Vec<(u64, u32)> = oversize.map(|&(bytes, _, id)| (bytes, id)).collect();
        let mut released = 0;
        for (bytes, id) in largest {
            if released >= wanted {
                break;
            }
            released += if self.release(id) { bytes } else { 0 };
        }
        released >= wanted
    }

    /// Releases every free segment, and every free page of expandable ones.
    pub(super) fn release_all(&mut self) {
        for small in [true, false] {
            let free: Vec<u32> = self.pool(small).free.iter().map(|f| f.2).collect();
            for id in free {
                match self.block(id).expandable {
                    true => self.unmap(id),
                    false => drop(self.release(id)),
                }
            }
        }
    }

    /// Gives a segment back that is one free block; whether it was one.
    fn release(&mut self, id: u32) -> bool {
        let block = self.block(id);
        let whole = !block.expandable && block.before == NONE && block.after == NONE;
        if whole {
            let size = block.size;
            self.unlist(id);
            self.now.reserved = self.now.reserved.saturating_sub(Bytes(size));
            self.spare.push(id);
        }
        whole
    }

    /// Gives everything back that is cached, as `torch.cuda.empty_cache()` does.
    pub fn empty_cache(&mut self) {
        self.release_all();
    }
}

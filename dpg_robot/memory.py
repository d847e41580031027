# Copyright 2026 The dpg_robot Authors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""When a device has too little memory."""

# What torch, warp and CUDA's libraries say; they have no one class for it.
_WORDS = 'out of memory', 'Failed to allocate', 'ALLOC_FAILED'


def is_out_of_memory(error: Exception) -> bool:
    """Return whether something failed for want of memory, on the host or on a device."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _WORDS)

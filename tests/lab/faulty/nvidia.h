/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What makes a module a user of the other. */
void nvidia_used(void);

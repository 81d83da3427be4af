// SPDX-License-Identifier: GPL-2.0-or-later
/* Stands in for NVIDIA's module of this name: it uses nvidia, which cannot be unloaded before it. */
#include <linux/module.h>

#include "nvidia.h"

static int __init begin(void)
{
	nvidia_used();
	return 0;
}

static void __exit end(void)
{
}

module_init(begin);
module_exit(end);

MODULE_DESCRIPTION("Stands in for a part of NVIDIA's driver in tests");
MODULE_LICENSE("GPL");

// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Frequencies for processors that have none, so that Linux has governors for them: two, a policy for each
 * processor, and nothing that runs faster or slower. What a governor has asked for last is in scaling_cur_freq.
 */
#include <linux/cpufreq.h>
#include <linux/module.h>

static struct cpufreq_frequency_table table[] = {
	{ .frequency = 1000000 },
	{ .frequency = 2000000 },
	{ .frequency = CPUFREQ_TABLE_END },
};

static int lab_init(struct cpufreq_policy *policy)
{
	policy->freq_table = table;
	policy->cur = table[0].frequency;
	/* In nanoseconds. The governors that follow the load ask for as little as they can. */
	policy->cpuinfo.transition_latency = 10000000;
	return 0;
}

static int lab_target_index(struct cpufreq_policy *policy, unsigned int index)
{
	/* The core has noted it. */
	return 0;
}

static struct cpufreq_driver lab_driver = {
	.name = "lab_cpufreq",
	.init = lab_init,
	.verify = cpufreq_generic_frequency_table_verify,
	.target_index = lab_target_index,
};

static int __init lab_start(void)
{
	return cpufreq_register_driver(&lab_driver);
}

static void __exit lab_end(void)
{
	cpufreq_unregister_driver(&lab_driver);
}

module_init(lab_start);
module_exit(lab_end);
MODULE_DESCRIPTION("Frequencies that change nothing");
MODULE_LICENSE("GPL");

# As x2, but as small as can be: 12 updates, seconds on a CPU. It shows that a machine and its data are ready.

_base_ = 'nlsn_x2c256b32_1xb16-1000k_div2k.py'

model = dict(generator=dict(num_feat=8, num_block=8, n_hashes=2, chunk_size=64))
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(gt_size=32))
train_cfg = dict(max_iters=12, val_interval=6)
param_scheduler = dict(milestones=[8])
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=1))

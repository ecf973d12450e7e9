# NLSN x2 on mmengine alone: the recipe of options/train_NLSN_x2.yml. Data: README, "Training on DIV2K".
# nlsn train-mmengine nlsn_x2c256b32_1xb16-1000k_div2k

custom_imports = dict(imports=['nlsn_plugin'], allow_failed_imports=False)
default_scope = 'mmengine'
scale = 2

model = dict(
    type='SuperResolutionModel',
    generator=dict(
        type='NLSN',
        num_in_ch=3,
        num_out_ch=3,
        num_feat=256,
        num_block=32,
        upscale=scale,
        n_hashes=4,
        chunk_size=144,
        reduction=4,
        res_scale=0.1,
        img_range=1.0,
        rgb_mean=[0.4488, 0.4371, 0.4040],
    ),
    pixel_loss=dict(type='torch.nn.L1Loss'),
)

train_dataloader = dict(
    batch_size=16,
    num_workers=6,  # at least 1 for a run that goes on as if it had not been stopped
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='SuperResolutionDataset',
        dataroot_gt='datasets/DIV2K/DIV2K_train_HR_sub.lmdb',
        dataroot_lq=f'datasets/DIV2K/DIV2K_train_LR_bicubic_X{scale}_sub.lmdb',
        scale=scale,
        gt_size=48 * scale,
        use_hflip=True,
        use_rot=True,
    ),
)

val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=False,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='SuperResolutionDataset',
        dataroot_gt='datasets/benchmark/Set5/HR',
        dataroot_lq=f'datasets/benchmark/Set5/LR_bicubic/X{scale}',
        filename_tmpl='{}' + f'x{scale}',
        scale=scale,
    ),
)
val_evaluator = dict(type='SuperResolutionMetric', crop_border=scale, protocol='basicsr', prefix='Set5')

train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000000, val_interval=5000)
val_cfg = dict(type='ValLoop')

optim_wrapper = dict(
    type='OptimWrapper',  # AmpOptimWrapper, or BFloat16OptimWrapper, for mixed precision; accumulative_counts=2
    optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99)),
)  # the released code has 0.999
param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[200000, 400000, 600000, 800000], gamma=0.5)

default_hooks = dict(
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=5, save_best='Set5/psnr_y', rule='greater'
    ),
    logger=dict(type='LoggerHook', interval=100),
)
custom_hooks = [dict(type='AnyWeightsHook'), dict(type='RandomStateHook')]
log_processor = dict(by_epoch=False)
randomness = dict(seed=1)

load_from = None  # weights to begin from: mmengine's, BasicSR's or the NLSN authors'
resume = False

# NLSN x2 as an editor of mmagic's: the recipe of options/train_NLSN_x2.yml.
# Data as mmagic keeps them: data/DIV2K/DIV2K_train_HR_sub, data/Set5/GTmod12, ...

custom_imports = dict(imports=['nlsn_plugin', 'nlsn_plugin.mmcv_lite'], allow_failed_imports=False)
default_scope = 'mmagic'
scale = 2

model = dict(
    type='BaseEditModel',
    generator=dict(
        type='NLSN',
        num_feat=256,
        num_block=32,
        upscale=scale,
        n_hashes=4,
        chunk_size=144,
        reduction=4,
        res_scale=0.1,
        rgb_mean=[0.4488, 0.4371, 0.4040],
    ),
    pixel_loss=dict(type='L1Loss', loss_weight=1.0, reduction='mean'),
    train_cfg=dict(),
    test_cfg=dict(),
    data_preprocessor=dict(type='DataPreprocessor', mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]),
)

train_pipeline = [
    dict(type='LoadImageFromFile', key='img', color_type='color', channel_order='rgb', imdecode_backend='cv2'),
    dict(type='LoadImageFromFile', key='gt', color_type='color', channel_order='rgb', imdecode_backend='cv2'),
    dict(type='SetValues', dictionary=dict(scale=scale)),
    dict(type='PairedRandomCrop', gt_patch_size=48 * scale),
    dict(type='Flip', keys=['img', 'gt'], flip_ratio=0.5, direction='horizontal'),
    dict(type='Flip', keys=['img', 'gt'], flip_ratio=0.5, direction='vertical'),
    dict(type='RandomTransposeHW', keys=['img', 'gt'], transpose_ratio=0.5),
    dict(type='PackInputs'),
]
val_pipeline = [train_pipeline[0], train_pipeline[1], dict(type='PackInputs')]

train_dataloader = dict(
    num_workers=8,
    batch_size=16,
    drop_last=True,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BasicImageDataset',
        metainfo=dict(dataset_type='div2k', task_name='sisr'),
        data_root='data/DIV2K',
        data_prefix=dict(img=f'DIV2K_train_LR_bicubic/X{scale}_sub', gt='DIV2K_train_HR_sub'),
        filename_tmpl=dict(img='{}', gt='{}'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=4,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BasicImageDataset',
        metainfo=dict(dataset_type='set5', task_name='sisr'),
        data_root='data/Set5',
        data_prefix=dict(img=f'LRbicx{scale}', gt='GTmod12'),
        pipeline=val_pipeline,
    ),
)
val_evaluator = dict(
    type='Evaluator',
    metrics=[
        dict(type='PSNR', crop_border=scale, convert_to='Y', prefix='Set5'),
        dict(type='SSIM', crop_border=scale, convert_to='Y', prefix='Set5'),
    ],
)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000000, val_interval=5000)
val_cfg = dict(type='MultiValLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    constructor='DefaultOptimWrapperConstructor',
    optimizer=dict(type='Adam', lr=1e-4, betas=(0.9, 0.99)),
)
param_scheduler = dict(type='MultiStepLR', by_epoch=False, milestones=[200000, 400000, 600000, 800000], gamma=0.5)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=5000, by_epoch=False, save_best='Set5/PSNR', rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [dict(type='AnyWeightsHook'), dict(type='RandomStateHook')]
log_processor = dict(type='LogProcessor', window_size=100, by_epoch=False)
randomness = dict(seed=1)
